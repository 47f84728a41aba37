"""Run an explain job by Ray Data: the same parts, rows and results as on one machine, one worker for each
core of the cluster, or for each GPU where the bundle was loaded onto one.

The bundle travels with the job. Pictures and results must be reachable from every worker: on one machine, on
a shared disk, or, without any, by addresses of an object store. The cluster is that of RAY_ADDRESS (as ``ray
job submit`` sets it), or one that is started here and ended afterwards. Needs the extra ``ray``.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import is_dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import ray.exceptions
import torch

from models.bundle import Bundle, copy_bundle, load_bundle
from models.devices import CPU, resolve_device
from models.errors import LucidaError
from models.explainer import Explainer
from models.progress import Progress, no_progress
from pipelines.batch.claims import claimed
from pipelines.batch.job import ExplainJob
from pipelines.batch.local import note_job
from pipelines.batch.parts import BatchResult, JobPart, finish_job, missing_parts, write_part
from pipelines.batch.pool import WorkerPlan, WorkerPool
from pipelines.batch.sinks import default_sinks
from pipelines.batch.store import open_store, scheme_of
from pipelines.batch.worker import BatchWorker
from pipelines.errors import DataError

_MOST_BLOCKS = 2_000
"""Into which the parts are gathered: what is lost with a node is done again block by block."""


class PartWriter:
    """A worker of the cluster, which writes the parts that come to it.

    On a CPU a process of its own does the work, as on one machine: a picture that ends or holds that process
    costs itself alone. On a GPU it is the one that Ray shows this worker.
    """

    def __init__(self, files: dict[str, bytes], job: ExplainJob, out: str, device: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="lucida-bundle-")
        folder = Path(self._folder.name)
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        self._pool: WorkerPool | None = None
        if device == CPU.type:
            self._pool = WorkerPool(WorkerPlan(folder, job, out), 1)
            return
        torch.set_num_threads(1)
        bundle = load_bundle(folder, device=resolve_device(device))
        self._worker = BatchWorker(job, Explainer(bundle, job.engine, precision=job.precision))
        self._sinks = default_sinks(job, bundle, out)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write the parts of a batch; return how many pictures each had, and why it could not be written: of
        an exception Ray keeps no more than its text.
        """
        parts: list[JobPart] = list(batch["part"])
        failure = ""
        try:
            if self._pool is not None:
                for _ in self._pool.write(parts):
                    pass
            else:
                for part in parts:
                    write_part(self._worker, part, self._sinks)
        except (LucidaError, OSError) as error:
            failure = str(error)
        return {
            "pictures": np.array([len(part.items) for part in parts]),
            "failure": np.array([failure] * len(parts)),
        }


def run_on_ray(
    job: ExplainJob,
    bundle: Bundle,
    out: Path | str,
    *,
    address: str | None = None,
    progress: Progress = no_progress,
) -> BatchResult:
    """Run as ``run_local`` on the Ray cluster at ``address``, or at RAY_ADDRESS, or on one started here and
    ended afterwards.
    """
    if scheme_of(str(out)) is None:
        out = Path(out).resolve()
    with claimed(open_store(out)):
        note_job(job, out)
        sinks = default_sinks(job, bundle, out)
        waiting = missing_parts(job, sinks)
        done = resumed = len(job.source.items) - sum(len(part.items) for part in waiting)
        mine = not ray.is_initialized()
        if mine:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
        try:
            for count in _write_on_cluster(job, bundle, str(out), waiting):
                done += count
                progress("explaining", done, len(job.source.items))
        except ray.exceptions.RayError as error:
            words = " ".join(str(error).split())
            raise DataError(f"The Ray cluster ended the job: {words[-300:]}") from error
        finally:
            if mine:
                ray.shutdown()
        return finish_job(out, sinks, resumed=resumed)


def _write_on_cluster(job: ExplainJob, bundle: Bundle, out: str, waiting: Sequence[JobPart]) -> Iterator[int]:
    """Yield how many pictures were done, as they are done; a worker that is lost is replaced, and what it was
    at is done again.
    """
    if not waiting:
        return
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    device = bundle.model.device.type
    unit = "GPU" if device == "cuda" else "CPU"
    count = max(1, min(len(waiting), int(ray.cluster_resources().get(unit, 1))))
    parts = ray.data.from_items(
        [{"part": part} for part in waiting], override_num_blocks=min(len(waiting), _MOST_BLOCKS)
    )
    written = parts.map_batches(
        PartWriter,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=1,
        num_gpus=1 if unit == "GPU" else None,
        fn_constructor_args=(_bundle_files(bundle), _without_items(job), out, device),
    )
    for row in written.iter_rows():
        if row["failure"]:
            raise DataError(str(row["failure"]))
        yield int(row["pictures"])


def _bundle_files(bundle: Bundle) -> dict[str, bytes]:
    """Return a bundle's files by their names."""
    with tempfile.TemporaryDirectory() as aside:
        folder = Path(aside) / "bundle"
        copy_bundle(bundle.folder, folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def _without_items(job: ExplainJob) -> ExplainJob:
    """Return a job whose source knows how to read and not what: each part has its own items."""
    source: Any = job.source
    if not is_dataclass(source):
        return job
    emptied: Any = replace(source, items=())  # type: ignore[type-var]
    return replace(job, source=emptied)
