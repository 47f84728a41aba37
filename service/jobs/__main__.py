"""The process that works on jobs: ``python -m service.jobs``, with the service's settings.

The service starts it when it is needed; with Redis it may also run on its own, on another machine that shares
the folder. It ends when there has been nothing to do for a while, or when the service has gone.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

from models.errors import LucidaError
from service.inference.model_manager import ModelManager
from service.jobs.queue import make_queue
from service.jobs.store import JobStore
from service.jobs.worker import JobWorker
from service.metrics import get_metrics
from service.settings import Settings

_IDLE_SECONDS = 60.0
_LOST_SECONDS = 5.0
_FORWARDS = 10**9
"""No limit: a job ends by its time."""
_LOOK_SECONDS = 1.0


def main() -> None:
    """Work until there is nothing left to do."""
    parent = os.getppid()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s [jobs] %(message)s")
    logging.getLogger("huey").setLevel(logging.WARNING)
    settings = Settings()
    bundle = settings.bundle
    if bundle is None:
        sys.exit("Set LUCIDA_BUNDLE to the bundle folder.")
    # A job has hours where a request has seconds, and the machine to itself for none of them.
    settings = settings.model_copy(update={"max_forwards": _FORWARDS, "max_batch": 1})
    os.nice(5)
    store = JobStore(settings.jobs)
    try:
        runner = JobWorker(store, ModelManager(lambda: bundle, settings, get_metrics()), settings)
    except LucidaError as error:
        sys.exit(f"The jobs cannot be worked on: {error}")
    queue, hand_out = make_queue(settings, runner.run)
    for job in store.unfinished():
        hand_out(job.id)
    consumer = queue.create_consumer(workers=1, periodic=False, initial_delay=0.1, max_delay=0.5)
    watch = threading.Thread(target=_watch, args=(store, runner, hand_out, parent), daemon=True)
    watch.start()
    consumer.run()


def _watch(store: JobStore, runner: JobWorker, hand_out: Callable[[str], None], parent: int) -> None:
    """End this process in good order when nobody needs it; hand out again what the queue has lost."""
    idle_since = time.monotonic()
    while True:
        time.sleep(_LOOK_SECONDS)
        if os.getppid() != parent:
            # What is found so far is on disk; nobody waits for the rest, and no picture is to blame.
            for job in store.unfinished():
                store.forgive(job)
            os._exit(128 + signal.SIGTERM)
        if runner.busy:
            idle_since = time.monotonic()
        elif waiting := store.unfinished():
            if time.monotonic() - idle_since > _LOST_SECONDS:
                idle_since = time.monotonic()
                for job in waiting:
                    hand_out(job.id)
        elif time.monotonic() - idle_since > _IDLE_SECONDS:
            os.kill(os.getpid(), signal.SIGINT)
            return


if __name__ == "__main__":
    main()
