"""Run an explain job on this machine: part by part, so that a job that was stopped resumes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.backends.openvino import OpenVinoBackend, save_graph
from models.bundle import Bundle
from models.devices import CPU
from models.explainer import Explainer
from models.progress import Progress, no_progress
from pipelines.batch.claims import claimed
from pipelines.batch.engine import JOB_NOTE
from pipelines.batch.job import ExplainJob
from pipelines.batch.parts import BatchResult, JobPart, finish_job, missing_parts, write_part
from pipelines.batch.pool import WorkerPlan, WorkerPool, remove_leftovers
from pipelines.batch.sinks import Sink, default_sinks
from pipelines.batch.store import LocalStore, open_store, scheme_of
from pipelines.batch.worker import BatchWorker
from pipelines.errors import DataError

_FEWEST_FOR_PROCESSES = 256
"""Pictures from which on the start of worker processes, some seconds, is worth it."""
_OWN_FILES = (".lock", ".owner.json")


def run_local(
    job: ExplainJob,
    bundle: Bundle,
    out: Path | str,
    *,
    explainer: Explainer | None = None,
    sinks: Sequence[Sink] | None = None,
    processes: int | None = None,
    progress: Progress = no_progress,
) -> BatchResult:
    """Explain every picture into the sinks; by default rows, overlays and a page in ``out``, then _SUCCESS.

    A long job on a CPU runs in a process for each core (or in ``processes``), a short one, one with sinks of
    its own and one on a GPU in this one. Stopped and started again with the same job it goes on where it
    was. Raises DataError when ``out`` holds another job, or another process works on it.
    """
    with claimed(open_store(out)):
        note_job(job, out)
        own = default_sinks(job, bundle, out) if sinks is None else sinks
        waiting = missing_parts(job, own)
        done = resumed = len(job.source.items) - sum(len(part.items) for part in waiting)
        count = processes or count_processes(bundle, waiting)
        if sinks is not None or count == 1:
            worker = BatchWorker(job, explainer or Explainer(bundle, job.engine, precision=job.precision))
            for part in waiting:
                write_part(worker, part, own)
                done += len(part.items)
                progress("explaining", done, len(job.source.items))
        else:
            with tempfile.TemporaryDirectory() as aside:
                graph = _save_graph(explainer, Path(aside))
                plan = WorkerPlan(bundle.folder.resolve(), job, str(out), graph)
                _run_in_processes(plan, waiting, count, done, progress)
        return finish_job(out, own, resumed=resumed)


def _save_graph(explainer: Explainer | None, folder: Path) -> Path | None:
    """Save OpenVINO's graph for the workers, if this process has one: to convert a model takes seconds."""
    backend = None if explainer is None else explainer.backend
    return save_graph(backend.graph, folder) if isinstance(backend, OpenVinoBackend) else None


def _run_in_processes(
    plan: WorkerPlan, waiting: Sequence[JobPart], count: int, done: int, progress: Progress
) -> None:
    pool = WorkerPool(plan, count)
    try:
        for part in pool.write(waiting):
            done += len(part.items)
            progress("explaining", done, len(plan.job.source.items))
    except BaseException:
        pool.close()
        remove_leftovers(plan.out)
        raise
    pool.close(at_once=False)


def count_processes(bundle: Bundle, waiting: Sequence[JobPart]) -> int:
    """Return how many worker processes a job with these parts gets on this machine."""
    pictures = sum(len(part.items) for part in waiting)
    if bundle.model.device != CPU or pictures < _FEWEST_FOR_PROCESSES:
        return 1
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, len(waiting))


def _absolute(place: str) -> str:
    """Return a place so that it can be found from anywhere."""
    return place if scheme_of(place) is not None else str(Path(place).absolute())


def note_job(job: ExplainJob, out: Path | str) -> None:
    """Make ``out`` this job's folder, or find that it is already; raises DataError when it is another's."""
    store = open_store(out)
    content = json.dumps(
        {
            "key": job.key,
            "model_digest": job.model_digest,
            **job.settings(),
            "source": _absolute(job.source.where),
            "pictures": len(job.source.items),
        },
        indent=2,
    ).encode()
    if store.exists(JOB_NOTE):
        if store.read(JOB_NOTE) != content:
            raise DataError(
                f"The folder {out} holds another job (other pictures, model or options); name a new one."
            )
    elif any(file.name not in _OWN_FILES for file in store.files()):
        raise DataError(f"The folder {out} is not empty and holds no explain job; name a new one.")
    if isinstance(store, LocalStore):
        for folder in ("rows", "overlays"):
            (store.folder / folder).mkdir(parents=True, exist_ok=True)
    remove_leftovers(out)
    store.write(JOB_NOTE, content)
