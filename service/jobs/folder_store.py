"""Jobs as folders of one folder, on a disk of this machine or a shared one.

Everything is written aside and renamed, but for the answers, of which a line that was cut off is dropped.
"""

from __future__ import annotations

import fcntl
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from models.atomic_write import atomic_write
from service.jobs.store import (
    ABANDONED_SECONDS,
    Job,
    JobStatus,
    JobStore,
    is_job_id,
    is_no_room,
    new_job,
    read_job,
    read_status,
)


class FolderJobStore(JobStore):
    """A folder with all jobs of one service, of at most so many bytes in all."""

    def __init__(self, folder: Path, *, most_bytes: int) -> None:
        super().__init__(most_bytes=most_bytes)
        self.folder = folder

    def create(self, verb: str, fields: dict[str, str], images: Sequence[bytes], owner: str | None) -> Job:
        """Keep a new job; it appears whole, or nothing of it is left. Raises OSError."""
        job = new_job(verb, fields, images, owner)
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

    def size(self) -> int:
        """Return the bytes of all files of the jobs, those that are being submitted among them."""
        folders = [path for path in self.folder.iterdir() if is_job_id(path.name.removeprefix("."))]
        total = 0
        # Another process may remove a job meanwhile: os.walk passes over a folder that is gone.
        for folder, _, names in itertools.chain.from_iterable(map(os.walk, folders)):
            for name in names:
                with suppress(FileNotFoundError):
                    total += (Path(folder) / name).lstat().st_size
        return total

    def get(self, name: str) -> Job | None:
        """Return the job of that id; None where there is none, or the id is none."""
        if not is_job_id(name):
            return None
        try:
            return read_job(name, (self.folder / name / "job.json").read_bytes())
        except FileNotFoundError:
            return None

    def jobs(self) -> list[Job]:
        """List all jobs, oldest first."""
        if not self.folder.is_dir():
            return []
        jobs = [self.get(path.name) for path in self.folder.iterdir()]
        return sorted((job for job in jobs if job is not None), key=lambda job: (job.created, job.id))

    def status(self, job: Job) -> JobStatus:
        """Return the progress of a job."""
        try:
            return read_status((self.folder / job.id / "status.json").read_bytes())
        except FileNotFoundError:
            return read_status(None)

    def write_status(self, job: Job, status: JobStatus) -> None:
        """Keep the progress of a job that is still there."""
        if (self.folder / job.id).is_dir():
            _write(self.folder / job.id / "status.json", asdict(status))

    def image(self, job: Job, n: int) -> bytes:
        """Return an image as it was uploaded."""
        return (self.folder / job.id / "pictures" / f"{n:05d}").read_bytes()

    def remove_images(self, job: Job) -> None:
        """Remove what was uploaded."""
        shutil.rmtree(self.folder / job.id / "pictures", ignore_errors=True)

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

    def add_answer(self, job: Job, n: int, answer: bytes) -> None:
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

    def remove_abandoned(self) -> None:
        """Remove what is left of submissions that were killed in the middle."""
        for aside in self.folder.glob(".*"):
            if is_job_id(aside.name[1:]) and aside.stat().st_mtime < time.time() - ABANDONED_SECONDS:
                shutil.rmtree(aside, ignore_errors=True)

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
