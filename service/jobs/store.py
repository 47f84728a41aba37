"""Jobs as folders: what was asked, the images, how far it is, the answers.

The folder is the only truth about a job: after a restart a job that has not ended goes on with the first
image that has no answer. Everything is written aside and renamed, but for the answers, of which a line that
was cut off is dropped.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from models.atomic_write import atomic_write

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
UNFINISHED_STATES: tuple[JobState, ...] = ("queued", "running")

log = logging.getLogger("lucida.jobs")

_ABANDONED_SECONDS = 3600.0
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_ID = re.compile(r"[A-Za-z0-9_-]{22}")


@dataclass(frozen=True, slots=True)
class Job:
    """A job as it was submitted; never changes."""

    id: str
    verb: str
    fields: dict[str, str]
    owner: str | None
    """Name of the key that it was submitted with."""
    pictures: int
    created: float
    """Seconds since 1970."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """The progress of a job."""

    state: JobState = "queued"
    done: int = 0
    """Answers found."""
    progress: float = 0.0
    """0 to 1."""
    eta_seconds: float | None = None
    started: float | None = None
    ended: float | None = None
    error: str | None = None


def is_no_room(error: OSError) -> bool:
    """Return whether a file could not be written because the disk, or the user's share of it, is full."""
    return error.errno in _NO_ROOM


class JobStore:
    """A folder with all jobs of one service, of at most so many bytes in all."""

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        self.folder, self.most_bytes = folder, most_bytes

    def create(self, verb: str, fields: dict[str, str], images: Sequence[bytes], owner: str | None) -> Job:
        """Keep a new job; it appears whole, or nothing of it is left. Raises OSError."""
        job = Job(secrets.token_urlsafe(16), verb, fields, owner, len(images), time.time())
        aside = self.folder / f".{job.id}"
        try:
            (aside / "pictures").mkdir(parents=True, mode=0o700)
            for n, data in enumerate(images):
                (aside / "pictures" / f"{n:05d}").write_bytes(data)
            _write(aside / "job.json", asdict(job))
            _write(aside / "status.json", asdict(JobStatus()))
            aside.rename(self.folder / job.id)
        except BaseException:
            shutil.rmtree(aside, ignore_errors=True)
            raise
        return job

    def make_room(self, needed: int) -> None:
        """Forget jobs that have ended, the oldest first, until so many bytes more are within the limit.

        Raises OSError (ENOSPC) where that is not enough.
        """
        ended = ((self.status(job).ended, job) for job in self.jobs())
        oldest = iter(sorted((when, job.id, job) for when, job in ended if when is not None))
        while (used := self.size()) + needed > self.most_bytes:
            _, _, job = next(oldest, (None, None, None))
            if job is None:
                message = f"{used:,} of the {self.most_bytes:,} bytes for jobs are in use"
                raise OSError(errno.ENOSPC, message)
            self.remove(job)

    def size(self) -> int:
        """Return the bytes of all files of the jobs, those that are being submitted among them."""
        folders = [path for path in self.folder.iterdir() if _ID.fullmatch(path.name.removeprefix("."))]
        total = 0
        # Another process may remove a job meanwhile: os.walk passes over a folder that is gone.
        for folder, _, names in itertools.chain.from_iterable(map(os.walk, folders)):
            for name in names:
                with suppress(FileNotFoundError):
                    total += (Path(folder) / name).lstat().st_size
        return total

    def get(self, name: str) -> Job | None:
        """Return the job of that id; None where there is none, or the id is none."""
        if not _ID.fullmatch(name):
            return None
        try:
            return Job(**json.loads((self.folder / name / "job.json").read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            # Cut by a power cut, or written by another version: one job less, and not all of them.
            log.warning("The job %s cannot be read and is left alone: %s", name, error)
            return None

    def jobs(self) -> list[Job]:
        """List all jobs, oldest first."""
        if not self.folder.is_dir():
            return []
        jobs = [self.get(path.name) for path in self.folder.iterdir()]
        return sorted((job for job in jobs if job is not None), key=lambda job: (job.created, job.id))

    def unfinished(self) -> list[Job]:
        """List the jobs that wait or run, oldest first."""
        return [job for job in self.jobs() if self.status(job).state in UNFINISHED_STATES]

    def status(self, job: Job) -> JobStatus:
        """Return the progress of a job."""
        try:
            return JobStatus(**json.loads((self.folder / job.id / "status.json").read_text()))
        except FileNotFoundError:
            return JobStatus(state="cancelled")
        except (ValueError, TypeError):
            return JobStatus(state="failed", error="What was known of this job is damaged.")

    def update(self, job: Job, **changes: Any) -> JobStatus:
        """Change its status."""
        status = replace(self.status(job), **changes)
        if (self.folder / job.id).is_dir():
            _write(self.folder / job.id / "status.json", asdict(status))
        return status

    def image(self, job: Job, n: int) -> bytes:
        """Return an image as it was uploaded."""
        return (self.folder / job.id / "pictures" / f"{n:05d}").read_bytes()

    def answers(self, job: Job) -> Iterator[bytes]:
        """Yield the answers as JSON texts, in the order of the images."""
        try:
            with (self.folder / job.id / "answers.jsonl").open("rb") as lines:
                for line in lines:
                    if line.endswith(b"\n"):
                        yield line[:-1]
        except FileNotFoundError:
            return

    def answered(self, job: Job) -> int:
        """Return the number of answers; a line that was cut off by a kill is taken away."""
        path = self.folder / job.id / "answers.jsonl"
        if not path.exists():
            return 0
        content = path.read_bytes()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            os.truncate(path, whole)
        return content.count(b"\n", 0, whole)

    def add_answer(self, job: Job, answer: bytes) -> None:
        """Append one more answer, on disk when this returns."""
        with (self.folder / job.id / "answers.jsonl").open("ab") as lines:
            lines.write(answer + b"\n")
            lines.flush()
            os.fsync(lines.fileno())

    def attempt(self, job: Job, n: int) -> int:
        """Note that work on an image begins; return how many times it has begun. The note outlives a kill."""
        path = self.folder / job.id / "attempt.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        times = int(before.get("times", 0)) + 1 if before.get("n") == n else 1
        _write(path, {"n": n, "times": times})
        return times

    def clear_attempt(self, job: Job) -> None:
        """Forget that an image was being begun: its process was ended by us, and not by the image."""
        (self.folder / job.id / "attempt.json").unlink(missing_ok=True)

    def finish(self, job: Job, **changes: Any) -> None:
        """Say how it ended, and let go of its images."""
        self.update(job, ended=time.time(), eta_seconds=None, **changes)
        shutil.rmtree(self.folder / job.id / "pictures", ignore_errors=True)

    def cancel(self, job: Job) -> None:
        """Have it stop where it is; what it has found stays, but where there is no room even to say so."""
        try:
            (self.folder / job.id / "cancel").touch()
        except OSError as error:
            if not is_no_room(error):
                raise
            self.remove(job)
            return
        if self.status(job).state == "queued":
            self.finish(job, state="cancelled")

    def cancelled(self, job: Job) -> bool:
        """Return whether the job should stop."""
        folder = self.folder / job.id
        return (folder / "cancel").exists() or not folder.is_dir()

    def remove(self, job: Job) -> None:
        """Remove it with all that it has found."""
        shutil.rmtree(self.folder / job.id, ignore_errors=True)

    def remove_old(self, seconds: float, *, most: int = 1000) -> int:
        """Remove jobs that ended longer ago, and all but the latest ``most``; return their number."""
        ended = [(self.status(job).ended, job) for job in self.jobs()]
        newest = sorted((when, job.id, job) for when, job in ended if when is not None)
        old = [job for when, _, job in newest if when < time.time() - seconds]
        # In number, too: the oldest go first.
        old += [job for _, _, job in newest[len(old) :][: max(0, len(newest) - len(old) - most)]]
        for job in old:
            self.remove(job)
        for aside in self.folder.glob(".*"):
            # Left by a kill in the middle of a submission.
            if _ID.fullmatch(aside.name[1:]) and aside.stat().st_mtime < time.time() - _ABANDONED_SECONDS:
                shutil.rmtree(aside, ignore_errors=True)
        return len(old)

    @contextmanager
    def submitting(self) -> Iterator[None]:
        """Hold the lock of submissions over all processes, so that their number holds."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(self.folder / "submit.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
        finally:
            os.close(file)

    @contextmanager
    def try_lock(self, job: Job) -> Iterator[bool]:
        """Yield whether this process may work on a job: no two processes work on one. The lock of a dead
        process is gone.
        """
        try:
            file = os.open(self.folder / job.id / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            yield False
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(file)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a small file aside and rename it; on a full disk, over the one that is there."""
    data = json.dumps(content).encode()
    try:
        atomic_write(path, data)
    except OSError as error:
        if not is_no_room(error) or not path.exists():
            raise
        with path.open("r+b") as file:
            # Of its old length at least: a cut would give the block away.
            file.write(data.ljust(path.stat().st_size))
