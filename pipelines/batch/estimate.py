"""What a job will take, from a sample of its pictures: minutes, and bytes of results."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from models.bundle import Bundle
from models.explainer import Explainer
from models.images.encode import encode_image
from models.progress import Progress, no_progress
from pipelines.batch.job import ExplainJob
from pipelines.batch.local import count_processes
from pipelines.batch.parts import missing_parts
from pipelines.batch.sinks import ROW_SCHEMA
from pipelines.batch.worker import BatchWorker

_SAMPLED, _WARM_UP = 64, 4


@dataclass(frozen=True, slots=True)
class JobEstimate:
    """A job as far as a sample tells."""

    pictures: int
    sampled: int
    errors: int
    """Of the sample, those that could not be used."""
    minutes: float
    bytes: int
    processes: int

    def __str__(self) -> str:
        """Write it for people."""
        sizes = f"{self.bytes / 1e9:.1f} GB" if self.bytes >= 1e9 else f"{self.bytes / 1e6:.0f} MB"
        return (
            f"{self.pictures:,} pictures: about {self.minutes:.1f} minutes in {self.processes} processes, "
            f"{sizes} of results. By {self.sampled} of them, of which {self.errors} could not be used."
        )


def estimate_job(
    job: ExplainJob, bundle: Bundle, *, processes: int | None = None,
    progress: Progress = no_progress,
) -> JobEstimate:  # fmt: skip
    """Explain up to 64 pictures, evenly chosen, and write nothing; return what all of them will take."""
    items = job.source.items
    places = np.unique(np.linspace(0, len(items) - 1, min(_SAMPLED, len(items))).astype(int))
    chosen = [items[place] for place in places]
    count = processes or count_processes(bundle, missing_parts(job, ()))
    # As a worker process has it: one thread where there are several.
    threads = 1 if count > 1 else torch.get_num_threads()
    worker = BatchWorker(job, Explainer(bundle, job.engine, precision=job.precision, threads=threads))
    # What is compiled and cached by the first pictures is not theirs alone.
    list(worker.explain_items(chosen[:_WARM_UP]))
    start, results, overlays = time.perf_counter(), [], 0
    for done, result in enumerate(worker.explain_items(chosen), start=1):
        results.append(result)
        overlays += len(encode_image(result.overlay)) if result.overlay is not None else 0
        progress("trying a sample", done, len(chosen))
    seconds = time.perf_counter() - start
    rows = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([result.row for result in results], schema=ROW_SCHEMA), rows)
    share = len(items) / len(chosen)
    return JobEstimate(
        pictures=len(items),
        sampled=len(chosen),
        errors=sum(result.row["status"] == "error" for result in results),
        minutes=seconds * share / count / 60,
        bytes=int((overlays + rows.getbuffer().nbytes) * share),
        processes=count,
    )
