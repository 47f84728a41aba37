"""How worker processes begin: as copies of one process that has done the imports, and nothing else.

This module imports nothing heavy, so that a command can have the imports begin beside its own.
"""

from __future__ import annotations

import multiprocessing
import os
from multiprocessing.context import BaseContext

_PRELOADED = ("pipelines.batch.worker", "pipelines.batch.sinks", "models.bundle", "models.backends.openvino")


def worker_context() -> BaseContext:
    """Return the context in which workers begin; on systems without fork each imports for itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_own_names())
    return context


def import_beside() -> None:
    """Have the process that workers are copied from begin with its imports, where there is a core for it."""
    if (os.cpu_count() or 1) < 2 or "forkserver" not in multiprocessing.get_all_start_methods():
        return
    from multiprocessing import forkserver

    worker_context()
    forkserver.ensure_running()


def _own_names() -> list[str]:
    """Return the names of what is imported before; installed from a wheel, all lie below one package."""
    package = __name__.removesuffix("pipelines.batch.processes")
    return [f"{package}{name}" for name in _PRELOADED]
