"""Jobs as objects of a bucket that several machines share: any of them answers for a job of any other.

Nothing is renamed there, so what must be whole is one object: a job is in the queue when its last object is
written, and each answer is an object that is created once. Of two processes that believe a job to be theirs,
the later one to answer an image finds the other's answer, and lets go.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

from service.jobs.bucket import Bucket
from service.jobs.lease import Leases
from service.jobs.store import (
    ABANDONED_SECONDS,
    UNFINISHED_STATES,
    Job,
    JobStatus,
    JobStore,
    JobTaken,
    is_job_id,
    new_job,
    read_job,
    read_status,
)

_AT_ONCE = 16
"""Requests on their way together where many objects are read or written."""
_JOBS = "jobs"
_QUEUE = "queue"


class BucketJobStore(JobStore):
    """A part of a bucket with all jobs of the replicas of one service."""

    poll_seconds = 2.0
    say_seconds = 2.0
    measure_seconds = 60.0

    def __init__(self, url: str, *, most_bytes: int, patience: float) -> None:
        super().__init__(most_bytes=most_bytes)
        self._bucket = Bucket(url, patience=patience)
        self._process = secrets.token_hex(8)
        self._leases = Leases(self._bucket, self._process)
        self._known: dict[str, Job] = {}
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="lucida-jobs")

    def create(self, verb: str, fields: dict[str, str], images: Sequence[bytes], owner: str | None) -> Job:
        """Keep a new job; it is in the queue when all of it is there."""
        job = new_job(verb, fields, images, owner)
        keys = [_key(job, "pictures", f"{n:05d}") for n in range(len(images))]
        try:
            list(self._pool.map(self._bucket.write, keys, images))
            self._bucket.write(_key(job, "status.json"), _json(asdict(JobStatus())))
            self._bucket.write(_key(job, "job.json"), _json(asdict(job)))
            self._bucket.write(f"{_QUEUE}/{job.id}", b"")
        except BaseException:
            self.remove(job)
            raise
        return job

    def size(self) -> int:
        """Return the bytes of all jobs, those that are being submitted among them."""
        return sum(entry.size for entry in self._bucket.entries(_JOBS))

    def get(self, name: str) -> Job | None:
        """Return the job of that id; None where there is none, or the id is none."""
        content = self._bucket.read(f"{_JOBS}/{name}/job.json") if is_job_id(name) else None
        return None if content is None else read_job(name, content)

    def jobs(self) -> list[Job]:
        """List all jobs, oldest first."""
        names = self._bucket.names(_JOBS)
        self._known = {name: job for name, job in self._known.items() if name in names}
        return self._read_all(names)

    def unfinished(self) -> list[Job]:
        """List the jobs that wait or run, oldest first."""
        waiting = []
        for job in self._read_all(self._bucket.names(_QUEUE)):
            if self.status(job).state in UNFINISHED_STATES:
                waiting.append(job)
            else:
                # Its process ended between the last word about it and this.
                self._leave_queue(job)
        return waiting

    def status(self, job: Job) -> JobStatus:
        """Return the progress of a job."""
        return read_status(self._bucket.read(_key(job, "status.json")))

    def write_status(self, job: Job, status: JobStatus) -> None:
        """Keep the progress of a job that is still there; raises JobTaken."""
        self._check_lease(job)
        if self.get(job.id) is None:
            return
        self._bucket.write(_key(job, "status.json"), _json(asdict(status)))
        if status.state not in UNFINISHED_STATES:
            self._leave_queue(job)

    def image(self, job: Job, n: int) -> bytes:
        """Return an image as it was uploaded; raises JobTaken where it is gone with the job."""
        content = self._bucket.read(_key(job, "pictures", f"{n:05d}"))
        if content is None:
            raise JobTaken(f"The job {job.id} has ended elsewhere.")
        return content

    def remove_images(self, job: Job) -> None:
        """Remove what was uploaded."""
        self._remove_below(_key(job, "pictures"))

    def answers(self, job: Job) -> Iterator[bytes]:
        """Yield the answers as JSON texts, in the order of the images."""
        keys = [_key(job, "answers", f"{n:05d}") for n in range(self.answered(job))]
        for first in range(0, len(keys), _AT_ONCE):
            for content in self._pool.map(self._bucket.read, keys[first : first + _AT_ONCE]):
                if content is None:
                    return
                yield content

    def answered(self, job: Job) -> int:
        """Return the number of answers without a gap: the number of the image to go on with."""
        names = self._bucket.names(_key(job, "answers"))
        return next((n for n in range(len(names)) if f"{n:05d}" not in names), len(names))

    def add_answer(self, job: Job, n: int, answer: bytes) -> None:
        """Add the answer for one more image; raises JobTaken where another process has answered it."""
        self._check_lease(job)
        if not self._bucket.create(_key(job, "answers", f"{n:05d}"), answer):
            raise JobTaken(f"Another process works on the job {job.id}.")

    def attempt(self, job: Job, n: int) -> int:
        """Note that work on an image begins; return how many processes have begun it."""
        content = self._bucket.read(_key(job, "attempt.json"))
        before: dict[str, Any] = {} if content is None else json.loads(content)
        times = int(before["times"]) if before.get("n") == n else 0
        if times == 0 or before.get("process") != self._process:
            times += 1
            note = {"n": n, "times": times, "process": self._process}
            self._bucket.write(_key(job, "attempt.json"), _json(note))
        return times

    def clear_attempt(self, job: Job) -> None:
        """Forget that an image was being begun: its process was ended by us, and not by the image."""
        self._bucket.delete([_key(job, "attempt.json")])

    def cancel(self, job: Job) -> None:
        """Have it stop where it is; what it has found stays."""
        self._bucket.write(_key(job, "cancel"), b"")
        if self.status(job).state == "queued":
            self.finish(job, state="cancelled")

    def cancelled(self, job: Job) -> bool:
        """Return whether the job should stop; raises JobTaken where another process has taken it over."""
        self._check_lease(job)
        names = self._bucket.names(f"{_JOBS}/{job.id}")
        return "cancel" in names or "job.json" not in names

    def remove(self, job: Job) -> None:
        """Remove it with all that it has found."""
        self._leave_queue(job)
        self._bucket.delete([_key(job, "job.json")])
        self._known.pop(job.id, None)
        self._remove_below(f"{_JOBS}/{job.id}")

    def remove_abandoned(self) -> None:
        """Remove what is left of submissions and removals that were killed in the middle."""
        for name in filter(is_job_id, self._bucket.names(_JOBS)):
            folder = f"{_JOBS}/{name}"
            if name in self._known or "job.json" in self._bucket.names(folder):
                continue
            written = [entry.modified.timestamp() for entry in self._bucket.entries(folder)]
            if written and max(written) < time.time() - ABANDONED_SECONDS:
                self._remove_below(folder)

    def submitting(self) -> AbstractContextManager[None]:
        """Return a context that holds nothing: jobs submitted at the same moment may be a few too many."""
        return nullcontext()

    def try_lock(self, job: Job) -> AbstractContextManager[bool]:
        """Yield whether this process may work on a job; the lease of a dead process ends by its silence."""
        return self._leases.hold(_key(job, "lease.json"))

    def _check_lease(self, job: Job) -> None:
        if self._leases.lost(_key(job, "lease.json")):
            raise JobTaken(f"Another process may have taken over the job {job.id}.")

    def _leave_queue(self, job: Job) -> None:
        self._bucket.delete([f"{_QUEUE}/{job.id}"])

    def _read_all(self, names: set[str]) -> list[Job]:
        unknown = [name for name in names if name not in self._known]
        read = [job for job in self._pool.map(self.get, unknown) if job is not None]
        self._known |= {job.id: job for job in read}
        jobs = [self._known[name] for name in names if name in self._known]
        return sorted(jobs, key=lambda job: (job.created, job.id))

    def _remove_below(self, folder: str) -> None:
        if keys := [entry.key for entry in self._bucket.entries(folder)]:
            self._bucket.delete(keys)


def _key(job: Job, *names: str) -> str:
    return "/".join((_JOBS, job.id, *names))


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content).encode()
