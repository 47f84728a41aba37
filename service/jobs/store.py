"""Jobs as the service keeps them, wherever that is: what was asked, the images, how far it is, the answers.

What is kept is the only truth about a job: after a restart a job that has not ended goes on with the first
image that has no answer. :mod:`service.jobs.folder_store` keeps jobs in a folder,
:mod:`service.jobs.bucket_store` in an object store that several machines share.
"""

from __future__ import annotations

import errno
import json
import logging
import re
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Literal

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
UNFINISHED_STATES: tuple[JobState, ...] = ("queued", "running")

log = logging.getLogger("lucida.jobs")

ABANDONED_SECONDS = 3600.0
"""Age of an unfinished submission that nobody is at any more."""
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


class JobStoreUnavailable(Exception):
    """The place of the jobs does not answer; nothing is lost."""


class JobTaken(Exception):
    """Another process has taken the job over, and goes on with it."""


def is_no_room(error: OSError) -> bool:
    """Return whether a file could not be written because the disk, or the user's share of it, is full."""
    return error.errno in _NO_ROOM


def is_job_id(name: str) -> bool:
    """Return whether a name could be a job's."""
    return _ID.fullmatch(name) is not None


def new_job(verb: str, fields: dict[str, str], images: Sequence[bytes], owner: str | None) -> Job:
    """Return a job with an id that nobody guesses."""
    return Job(secrets.token_urlsafe(16), verb, fields, owner, len(images), time.time())


def read_job(name: str, content: bytes) -> Job | None:
    """Return a job from its JSON; None where that is damaged, or of another version."""
    try:
        return Job(**json.loads(content))
    except (ValueError, TypeError) as error:
        # Cut by a power cut, for example: one job less, and not all of them.
        log.warning("The job %s cannot be read and is left alone: %s", name, error)
        return None


def read_status(content: bytes | None) -> JobStatus:
    """Return a job's progress from its JSON; None stands for a job that was removed."""
    if content is None:
        return JobStatus(state="cancelled")
    try:
        return JobStatus(**json.loads(content))
    except (ValueError, TypeError):
        return JobStatus(state="failed", error="What was known of this job is damaged.")


class JobStore(ABC):
    """A keeper of all jobs of one service, of at most so many bytes in all.

    Where the jobs lie in an object store, every method may raise JobStoreUnavailable.
    """

    poll_seconds = 0.3
    """Pause between two looks for work."""
    say_seconds = 0.5
    """Time between two notes of a running job's progress."""
    measure_seconds = 5.0
    """Time between two looks at the bytes in use, while answers are added."""

    def __init__(self, *, most_bytes: int) -> None:
        self.most_bytes = most_bytes

    @abstractmethod
    def create(self, verb: str, fields: dict[str, str], images: Sequence[bytes], owner: str | None) -> Job:
        """Keep a new job; it appears whole, or nothing of it is left. Raises OSError."""

    @abstractmethod
    def size(self) -> int:
        """Return the bytes of all jobs, those that are being submitted among them."""

    @abstractmethod
    def get(self, name: str) -> Job | None:
        """Return the job of that id; None where there is none, or the id is none."""

    @abstractmethod
    def jobs(self) -> list[Job]:
        """List all jobs, oldest first."""

    @abstractmethod
    def status(self, job: Job) -> JobStatus:
        """Return the progress of a job."""

    @abstractmethod
    def write_status(self, job: Job, status: JobStatus) -> None:
        """Keep the progress of a job that is still there; raises JobTaken."""

    @abstractmethod
    def image(self, job: Job, n: int) -> bytes:
        """Return an image as it was uploaded."""

    @abstractmethod
    def remove_images(self, job: Job) -> None:
        """Remove what was uploaded."""

    @abstractmethod
    def answers(self, job: Job) -> Iterator[bytes]:
        """Yield the answers as JSON texts, in the order of the images."""

    @abstractmethod
    def answered(self, job: Job) -> int:
        """Return the number of answers without a gap: the number of the image to go on with."""

    @abstractmethod
    def add_answer(self, job: Job, n: int, answer: bytes) -> None:
        """Add the answer for one more image, kept for good when this returns; raises JobTaken."""

    @abstractmethod
    def attempt(self, job: Job, n: int) -> int:
        """Note that work on an image begins; return how many times it has begun. The note outlives a kill."""

    @abstractmethod
    def clear_attempt(self, job: Job) -> None:
        """Forget that an image was being begun: its process was ended by us, and not by the image."""

    @abstractmethod
    def cancel(self, job: Job) -> None:
        """Have it stop where it is; what it has found stays, but where there is no room even to say so."""

    @abstractmethod
    def cancelled(self, job: Job) -> bool:
        """Return whether the job should stop."""

    @abstractmethod
    def remove(self, job: Job) -> None:
        """Remove it with all that it has found."""

    @abstractmethod
    def remove_abandoned(self) -> None:
        """Remove what is left of submissions that were killed in the middle."""

    @abstractmethod
    def submitting(self) -> AbstractContextManager[None]:
        """Hold the lock of submissions over the processes of this machine, so that their number holds."""

    @abstractmethod
    def try_lock(self, job: Job) -> AbstractContextManager[bool]:
        """Yield whether this process may work on a job: no two processes work on one."""

    def unfinished(self) -> list[Job]:
        """List the jobs that wait or run, oldest first."""
        return [job for job in self.jobs() if self.status(job).state in UNFINISHED_STATES]

    def update(self, job: Job, **changes: Any) -> JobStatus:
        """Change its status; raises JobTaken."""
        status = replace(self.status(job), **changes)
        self.write_status(job, status)
        return status

    def finish(self, job: Job, **changes: Any) -> None:
        """Say how it ended, and let go of its images."""
        self.update(job, ended=time.time(), eta_seconds=None, **changes)
        self.remove_images(job)

    def make_room(self, needed: int) -> None:
        """Forget jobs that have ended, the oldest first, until so many bytes more are within the limit.

        Raises OSError (ENOSPC) where that is not enough.
        """
        oldest: Iterator[Job] | None = None
        while (used := self.size()) + needed > self.most_bytes:
            oldest = iter(self._ended()) if oldest is None else oldest
            job = next(oldest, None)
            if job is None:
                message = f"{used:,} of the {self.most_bytes:,} bytes for jobs are in use"
                raise OSError(errno.ENOSPC, message)
            self.remove(job)

    def remove_old(self, seconds: float, *, most: int = 1000) -> int:
        """Remove jobs that ended longer ago, and all but the latest ``most``; return their number."""
        ended = self._ended()
        since = time.time() - seconds
        old = [job for job in ended if (self.status(job).ended or 0.0) < since]
        # In number, too: the oldest go first.
        old += ended[len(old) :][: max(0, len(ended) - len(old) - most)]
        for job in old:
            self.remove(job)
        self.remove_abandoned()
        return len(old)

    def _ended(self) -> list[Job]:
        """List the jobs that have ended, the one that ended first before the others."""
        ended = [(self.status(job).ended, job) for job in self.jobs()]
        return [job for _, _, job in sorted((when, job.id, job) for when, job in ended if when is not None)]
