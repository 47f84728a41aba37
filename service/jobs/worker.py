"""One job worked on, picture by picture; the process that does so is :mod:`service.jobs.__main__`."""

from __future__ import annotations

import logging
import time
from http import HTTPStatus

from models.cancellation import Deadline, check_deadline, deadline_scope
from models.errors import Cancelled, DeadlineExceeded, LucidaError
from service.errors import INTERNAL_MESSAGE, HTTPError, to_http_error
from service.inference.model_manager import ModelManager
from service.jobs.store import UNFINISHED_STATES, Job, JobStore
from service.operations.job_operations import JOB_OPERATIONS, JobOperation
from service.operations.multipart import validate_form
from service.schemas import Answer
from service.settings import Settings

log = logging.getLogger("lucida.jobs")

_SAY_SECONDS = 0.5
_ATTEMPTS = 2
_DEADLY = HTTPError(
    HTTPStatus.INTERNAL_SERVER_ERROR,
    "deadly",
    "The process that worked on this ended before it was done, twice; it was passed over.",
)


class JobWorker:
    """Works on jobs, one at a time."""

    def __init__(self, store: JobStore, champion: ModelManager, settings: Settings) -> None:
        self.store, self.champion, self.settings = store, champion, settings
        self.busy = False

    def run(self, name: str) -> None:
        """Work on the job of that id to its end, from where it was left; nothing where it has ended."""
        job = self.store.get(name)
        if job is None or self.store.status(job).state not in UNFINISHED_STATES:
            return
        with self.store.taken(job) as ours:
            if ours:
                self.busy = True
                try:
                    self._run(job)
                except Exception:
                    log.exception("job %s failed", job.id)
                    self.store.finish(job, state="failed", error=INTERNAL_MESSAGE)
                finally:
                    self.busy = False

    def _run(self, job: Job) -> None:
        self.champion.look()
        progress = _Progress(self.store, job, start=self.store.answered(job))
        limit = Deadline(self.settings.job_minutes * 60)
        self.store.say(job, state="running", started=time.time())
        try:
            for n in range(progress.done, progress.total):
                if self.store.attempt(job, n) > _ATTEMPTS:
                    self.store.add(job, _DEADLY.body.model_dump_json().encode())
                    progress.step()
                    continue
                self.store.add(job, self._answer(job, n, progress, limit).model_dump_json().encode())
                progress.step()
        except Cancelled:
            self.store.finish(job, state="cancelled")
        except DeadlineExceeded:
            minutes = f"{self.settings.job_minutes:g} minutes"
            self.store.finish(job, state="failed", error=f"The job did not end within its {minutes}.")
        else:
            self.store.finish(job, state="done", progress=1.0, done=progress.done)

    def _answer(self, job: Job, n: int, progress: _Progress, limit: Deadline) -> Answer:
        """For one picture; its own failure is its answer, and stops no other."""
        limit.check()
        verb: JobOperation = JOB_OPERATIONS[job.verb]
        try:
            form = validate_form(verb.form, job.fields)
            asked = form.deadline_ms / 1000 if form.deadline_ms else float("inf")
            seconds = min(limit.remaining or 0.0, asked)
            budget = form.deadline_ms is not None
            with deadline_scope(Deadline(seconds, tick=progress.tick, budget=budget)):
                check_deadline()
                data = self.store.picture(job, n) if verb.pictures else b""
                return verb.run(self.champion.doubts, data, form)
        except Cancelled:
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
    """Says how far a job is, and hears whether it is still wanted.

    Within a picture the steps of its loops are counted; how many there will be is known from the pictures
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
        """One step of the picture's work; raises Cancelled."""
        self._ticks += 1
        now = time.monotonic()
        if now - self._said < _SAY_SECONDS:
            return
        self._said = now
        if self._store.cancelled(self._job):
            raise Cancelled("The job was cancelled.")
        self._say()

    def step(self) -> None:
        """One picture is done."""
        self.done += 1
        self._all_ticks += self._ticks
        self._ticks = 0
        self._say()

    def _say(self) -> None:
        made = self.done - self._first
        each = max(self._all_ticks / made, 1.0) if made else float(self._GUESS)
        within = self._ticks / (self._ticks + each) if not made else min(self._ticks / each, 0.99)
        share = (self.done + within) / self.total
        gone = time.monotonic() - self._begun
        ours = made + within
        eta = gone / ours * (self.total - self.done - within) if ours > 0 and gone > 1 else None
        self._store.say(
            self._job, done=self.done, progress=round(min(share, 1.0), 4),
            eta_seconds=None if eta is None else round(max(eta, 0.0), 1),
        )  # fmt: skip
