"""Run an explain job on Ray: the same parts, rows and folder as on one machine, one worker for each core,
or for each GPU where the bundle was loaded onto one.

The bundle, the images and the output folder must be reachable from every worker (one machine, or a shared
disk). Needs the extra ``ray``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import ray
import torch

from models.bundle import Bundle, load_bundle
from models.devices import resolve_device
from models.explainer import Explainer
from models.progress import Progress, no_progress
from pipelines.batch.claims import claimed
from pipelines.batch.job import ExplainJob
from pipelines.batch.local import note_job
from pipelines.batch.parts import BatchResult, JobPart, finish_job, missing_parts, write_part
from pipelines.batch.sinks import default_sinks
from pipelines.batch.store import open_store, scheme_of
from pipelines.batch.worker import BatchWorker


class _RayWorker:
    """A loaded bundle in a Ray worker; torch takes one thread, since Ray gives each worker one core. On a GPU
    it is the one that Ray shows this worker alone.
    """

    def __init__(self, folder: Path, job: ExplainJob, out: Path | str, device: str) -> None:
        torch.set_num_threads(1)
        bundle = load_bundle(folder, device=resolve_device(device))
        self.worker = BatchWorker(job, Explainer(bundle, job.engine, precision=job.precision))
        self.sinks = default_sinks(job, bundle, out)

    def explain(self, part: JobPart) -> int:
        """Write a part's rows and overlays; return how many pictures it had."""
        write_part(self.worker, part, self.sinks)
        return len(part.items)


def run_on_ray(
    job: ExplainJob,
    bundle: Bundle,
    out: Path | str,
    *,
    address: str | None = None,
    progress: Progress = no_progress,
) -> BatchResult:
    """Run as ``run_local`` on the Ray cluster at ``address``, or on one started here and ended afterwards."""
    if scheme_of(str(out)) is None:
        out = Path(out).resolve()
    with claimed(open_store(out)):
        note_job(job, out)
        sinks = default_sinks(job, bundle, out)
        waiting = missing_parts(job, sinks)
        done = resumed = len(job.source.items) - sum(len(part.items) for part in waiting)
        mine = not ray.is_initialized()
        if mine:
            ray.init(address=address, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            for count in _write_on_cluster(job, bundle, out, waiting):
                done += count
                progress("explaining", done, len(job.source.items))
        finally:
            if mine:
                ray.shutdown()
        return finish_job(out, sinks, resumed=resumed)


def _write_on_cluster(
    job: ExplainJob, bundle: Bundle, out: Path | str, waiting: Sequence[JobPart]
) -> Iterator[int]:
    """Yield how many pictures each part had, as they are done."""
    device = bundle.model.device.type
    unit = "GPU" if device == "cuda" else "CPU"
    count = max(1, min(len(waiting), int(ray.cluster_resources().get(unit, 1))))
    kind = ray.remote(num_cpus=1, num_gpus=1 if device == "cuda" else 0)(_RayWorker)
    folder = bundle.folder.resolve()
    pool = ray.util.ActorPool([kind.remote(folder, job, out, device) for _ in range(count)])
    yield from pool.map_unordered(lambda worker, part: worker.explain.remote(part), waiting)
