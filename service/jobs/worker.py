"""One job worked on, image by image; the process that does so is :mod:`service.jobs.__main__`."""

from __future__ import annotations

import logging
import math
import time
from http import HTTPStatus

from models.cancellation import Deadline, check_deadline, deadline_scope
from models.errors import Cancelled, DeadlineExceeded, LucidaError
from service.errors import INTERNAL_MESSAGE, HTTPError, to_http_error
from service.inference.model_manager import ModelManager
from service.jobs.store import (
    UNFINISHED_STATES,
    Job,
    JobStore,
    JobStoreUnavailable,
    JobTaken,
    is_no_room,
)
from service.operations import multipart
from service.operations.operation import Operation
from service.operations.registry import JOB_OPERATIONS
from service.schemas import Answer
from service.settings import Settings

log = logging.getLogger("lucida.jobs")

_LOOK_SECONDS = 1.0
"""How often a long job looks whether a short one waits."""
_ATTEMPTS = 2
_NO_ROOM_MESSAGE = (
    "There is no room left for the answers of the job; those found so far are kept. Delete jobs that have "
    "ended, or send fewer pictures."
)
_DEADLY = HTTPError(
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "deadly",
    "The process that worked on this ended before it was done, twice; it was passed over.",
)


class JobWorker:
    """A worker on jobs, one at a time; jobs of one picture go before the next picture of a longer one, so
    that a person does not wait for a batch.
    """

    def __init__(self, store: JobStore, models: ModelManager, settings: Settings) -> None:
        self.store, self.models, self.settings = store, models, settings
        self._looked = 0.0
        self._room, self._measured = 0, 0.0

    def run_next(self) -> bool:
        """Work on the first job that waits, those of one picture first and each kind in the order of its
        submission; return whether there was one.
        """
        waiting = sorted(self.store.unfinished(), key=lambda job: job.pictures > 1)
        return any(self.run(job) for job in waiting)

    def run(self, job: Job) -> bool:
        """Work on a job to its end, from where it was left; return whether there was anything to do."""
        self.models.refresh()
        return self._run_locked(job)

    def _run_locked(self, job: Job) -> bool:
        with self.store.try_lock(job) as locked:
            if not locked or self.store.status(job).state not in UNFINISHED_STATES:
                return False
            try:
                self._run(job)
            except JobTaken as reason:
                log.warning("job %s is left: %s", job.id, reason)
            except JobStoreUnavailable:
                raise
            except Exception:
                log.exception("job %s failed", job.id)
                self.store.finish(job, state="failed", error=INTERNAL_MESSAGE)
            return True

    def _run(self, job: Job) -> None:
        progress = _Progress(self.store, job, start=self.store.answered(job))
        limit = Deadline(self.settings.job_minutes * 60)
        self.store.update(job, state="running", started=time.time())
        try:
            for n in range(progress.done, progress.total):
                if self.store.attempt(job, n) > _ATTEMPTS:
                    self.store.add_answer(job, n, _DEADLY.body.model_dump_json().encode())
                    progress.step()
                    continue
                answer = self._answer(job, n, progress, limit).model_dump_json().encode()
                self._make_room(len(answer))
                self.store.add_answer(job, n, answer)
                progress.step()
                self._run_short_jobs(job)
        except Cancelled:
            self.store.finish(job, state="cancelled")
        except OSError as error:
            if not is_no_room(error):
                raise
            log.error("job %s ends, for its folder is full: %s", job.id, error.strerror)
            self.store.finish(job, state="failed", error=_NO_ROOM_MESSAGE)
        except DeadlineExceeded:
            minutes = f"{self.settings.job_minutes:g} minutes"
            self.store.finish(job, state="failed", error=f"The job did not end within its {minutes}.")
        else:
            self.store.finish(job, state="done", progress=1.0, done=progress.done)

    def _make_room(self, needed: int) -> None:
        """Keep the folder within its limit; raises OSError where it is full. It is measured now and then."""
        now = time.monotonic()
        self._room -= needed
        if self._room < 0 or now - self._measured > self.store.measure_seconds:
            self.store.make_room(needed)
            self._room, self._measured = self.store.most_bytes - self.store.size() - needed, now

    def _run_short_jobs(self, job: Job) -> None:
        """Work on the jobs of one picture that wait at the moment, between two pictures of a longer one."""
        now = time.monotonic()
        if job.pictures < 2 or now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        for waiting in self.store.unfinished():
            if waiting.pictures < 2:
                self._run_locked(waiting)

    def _answer(self, job: Job, n: int, progress: _Progress, limit: Deadline) -> Answer:
        """Answer for one image; its own failure is its answer, and stops no other."""
        limit.check()
        operation: Operation = JOB_OPERATIONS[job.verb]
        try:
            form = multipart.validate_form(operation.form, job.fields).as_json()
            seconds = min(limit.remaining or 0.0, form.deadline_ms / 1000 if form.deadline_ms else math.inf)
            budget = form.deadline_ms is not None
            with deadline_scope(Deadline(seconds, tick=progress.tick, budget=budget)):
                check_deadline()
                data = self.store.image(job, n) if operation.takes_image else b""
                answer = operation.run(self.models.predictor, data, form)
                assert isinstance(answer, Answer)
                return answer
        except (Cancelled, JobTaken, JobStoreUnavailable):
            raise
        except DeadlineExceeded as error:
            limit.check()
            return to_http_error(error).body
        except HTTPError as refusal:
            return refusal.body
        except LucidaError as error:
            return to_http_error(error).body
        except Exception:
            log.exception("job %s: item %d failed", job.id, n)
            return HTTPError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", INTERNAL_MESSAGE).body


class _Progress:
    """A listener that writes how far a job is, and raises when it has been cancelled.

    Within an image the steps of its loops are counted; how many there will be is known from the images
    before, and guessed for the first.
    """

    _GUESS = 60

    def __init__(self, store: JobStore, job: Job, *, start: int) -> None:
        self._store, self._job = store, job
        self.done, self.total = start, max(job.pictures, 1)
        self._first, self._begun = start, time.monotonic()
        self._ticks, self._all_ticks = 0, 0
        self._said = 0.0

    def tick(self) -> None:
        """Note one step of the image's work; raises Cancelled."""
        self._ticks += 1
        if time.monotonic() - self._said < self._store.say_seconds:
            return
        if self._store.cancelled(self._job):
            raise Cancelled("The job was cancelled.")
        self._say()

    def step(self) -> None:
        """Note that one image is done."""
        self.done += 1
        self._all_ticks += self._ticks
        self._ticks = 0
        if time.monotonic() - self._said >= self._store.say_seconds or self.done == self.total:
            self._say()

    def _say(self) -> None:
        self._said = time.monotonic()
        done_here = self.done - self._first
        ticks_per_image = max(self._all_ticks / done_here, 1.0) if done_here else float(self._GUESS)
        within = (
            self._ticks / (self._ticks + ticks_per_image)
            if not done_here
            else min(self._ticks / ticks_per_image, 0.99)
        )
        share = (self.done + within) / self.total
        gone = time.monotonic() - self._begun
        ours = done_here + within
        eta = gone / ours * (self.total - self.done - within) if ours > 0 and gone > 1 else None
        self._store.update(
            self._job, done=self.done, progress=round(min(share, 1.0), 4),
            eta_seconds=None if eta is None else round(max(eta, 0.0), 1),
        )  # fmt: skip
