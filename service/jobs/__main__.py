"""The process that works on jobs: ``python -m service.jobs``, with the service's settings.

The service starts it when there is a job. It takes the oldest unfinished job of the folder, those of one
picture before longer ones, again and again, and ends when there has been nothing to do for a while, when it
is interrupted (after the present job), or when the service has gone.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from contextlib import suppress

from models.errors import LucidaError
from service.inference.model_manager import ModelManager
from service.jobs.open import open_job_store
from service.jobs.store import JobStore, JobStoreUnavailable
from service.jobs.worker import JobWorker
from service.metrics import get_metrics
from service.operations.trial import try_answers
from service.settings import Settings

log = logging.getLogger("lucida.jobs")

_IDLE_SECONDS = 60.0
_FORWARDS = 10**9
"""No limit: a job ends by its time."""
_PATIENCE_SECONDS = 20.0
"""Less than the silence that ends a lease on a job."""
_PARENT_SECONDS = 1.0


def main() -> None:
    """Work until there is nothing left to do."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [jobs] %(message)s")
    settings = Settings()
    bundle = settings.bundle
    if bundle is None:
        sys.exit("Set LUCIDA_BUNDLE to the bundle folder.")
    # A job may take hours where a request takes seconds, but it shares the machine with the service.
    settings = settings.model_copy(update={"max_forwards": _FORWARDS, "max_batch": 1})
    os.nice(5)
    store = open_job_store(settings, patience=_PATIENCE_SECONDS)
    stopping = threading.Event()
    signal.signal(signal.SIGINT, lambda number, frame: stopping.set())
    threading.Thread(target=_end_with_parent, args=(store, os.getppid()), daemon=True).start()
    try:
        models = ModelManager(lambda: bundle, settings, get_metrics(), try_answers)
    except LucidaError as error:
        sys.exit(f"The jobs cannot be worked on: {error}")
    _work(JobWorker(store, models, settings), stopping)


def _work(worker: JobWorker, stopping: threading.Event) -> None:
    """Take the next job that nobody works on, until there has been none for a while."""
    idle_since = time.monotonic()
    while not stopping.is_set() and time.monotonic() - idle_since < _IDLE_SECONDS:
        try:
            worked = worker.run_next()
        except JobStoreUnavailable as error:
            log.warning("The jobs wait: %s", error)
            worked = False
        if worked:
            idle_since = time.monotonic()
        else:
            stopping.wait(worker.store.poll_seconds)


def _end_with_parent(store: JobStore, parent: int) -> None:
    """End this process when the service has gone, whatever it is doing."""
    while os.getppid() == parent:
        time.sleep(_PARENT_SECONDS)
    # What is done so far is on disk; nobody waits for the rest, and no image is to blame.
    with suppress(JobStoreUnavailable):
        for job in store.unfinished():
            store.clear_attempt(job)
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
