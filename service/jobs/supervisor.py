"""The supervisor of the process that works on jobs: starts it when there is a job, ends it with the service.

Every worker of the service has a supervisor; the one that holds a lock in the jobs' folder works, and when
its worker dies, another takes over.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from service.jobs.open import open_job_store
from service.jobs.store import JobStoreUnavailable
from service.settings import Settings

log = logging.getLogger("lucida.jobs")

_LOOK_SECONDS = 0.5
_CLEAN_SECONDS = 60.0
_PATIENCE_SECONDS = 2.0
_AWAY_SECONDS = 10.0
_END_SECONDS = 5.0
_SOUND_SECONDS = 30.0
_LONGEST_PAUSE = 60.0


class JobSupervisor:
    """A supervisor of one worker process; ``bundle`` says which folder is served now."""

    def __init__(self, settings: Settings, bundle: Callable[[], Path]) -> None:
        self._settings, self._bundle = settings, bundle
        self._store = open_job_store(settings, patience=_PATIENCE_SECONDS)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lucida-job-supervisor", daemon=True)
        self._child: subprocess.Popen[bytes] | None = None
        self._served: Path | None = None
        self._ending = False
        self._begun, self._not_before, self._pause = 0.0, 0.0, 1.0

    def start(self) -> None:
        """Begin to look for jobs."""
        self._settings.jobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._thread.start()

    def close(self) -> None:
        """End the process; a job that it was at goes on when the service is there again."""
        self._stop.set()
        self._thread.join(_END_SECONDS + 1)

    def _keep(self) -> None:
        lock = os.open(self._settings.jobs / "keeper.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while not self._locked(lock):
                if self._stop.wait(_LOOK_SECONDS):
                    return
            cleaned = 0.0
            while not self._stop.wait(max(_LOOK_SECONDS, self._store.poll_seconds)):
                try:
                    self._look()
                    if time.monotonic() - cleaned > _CLEAN_SECONDS:
                        cleaned = time.monotonic()
                        self._store.remove_old(
                            self._settings.job_hours * 3600, most=self._settings.max_kept_jobs
                        )
                except JobStoreUnavailable as error:
                    log.warning("The jobs cannot be looked after now: %s", error)
                    self._stop.wait(_AWAY_SECONDS)
                except Exception:
                    # Whatever it is, jobs that wait need somebody who looks again.
                    log.exception("The jobs cannot be looked after now.")
        finally:
            self._end()
            os.close(lock)

    def _locked(self, lock: int) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _look(self) -> None:
        running = self._child is not None and self._child.poll() is None
        if running and not self._ending and self._served != self._bundle():
            # It ends when the present job has; the next one is for the new model. Asked twice, it would end
            # in the middle of an image.
            assert self._child is not None
            self._child.send_signal(signal.SIGINT)
            self._ending = True
        elif not running and time.monotonic() >= self._not_before and self._store.unfinished():
            # A process that ended at once will do so again, so it is started less and less often.
            lived = time.monotonic() - self._begun
            self._pause = 1.0 if lived > _SOUND_SECONDS else min(self._pause * 2, _LONGEST_PAUSE)
            self._not_before = time.monotonic() + self._pause
            self._begin()

    def _begin(self) -> None:
        home = str(Path(__file__).resolve().parents[__name__.count(".")])
        paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._served, self._begun, self._ending = self._bundle(), time.monotonic(), False
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "LUCIDA_BUNDLE": str(self._served),
            "LUCIDA_JOBS": str(self._settings.jobs),
        }
        # Not our metrics: the files of several processes would be added up by the service.
        environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
        self._child = subprocess.Popen(
            [sys.executable, "-m", str(__package__)], env=environment, stdin=subprocess.DEVNULL
        )

    def _end(self) -> None:
        if self._child is None or self._child.poll() is not None:
            return
        self._child.terminate()
        try:
            self._child.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        with suppress(JobStoreUnavailable):
            for job in self._store.unfinished():
                self._store.clear_attempt(job)
