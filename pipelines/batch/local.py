"""Run an explain job on this machine: part by part, so that a job that was stopped resumes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from models.atomic_write import atomic_write
from models.bundle import Bundle
from models.explainer import Explainer
from models.progress import Progress, no_progress
from pipelines.batch.engine import JOB_NOTE
from pipelines.batch.job import ExplainJob
from pipelines.batch.sinks import Sink, default_sinks, read_rows
from pipelines.batch.worker import BatchWorker
from pipelines.errors import DataError

_PART_SIZE = 64


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The outcome of a job."""

    out: Path
    pictures: int
    errors: int
    resumed: int
    """Images that an earlier run of the same job had done already."""


@dataclass(frozen=True, slots=True)
class JobPart:
    """Some of a job's files."""

    name: str
    files: tuple[str, ...]


def run_local(
    job: ExplainJob,
    bundle: Bundle,
    out: Path,
    *,
    explainer: Explainer | None = None,
    sinks: Sequence[Sink] | None = None,
    progress: Progress = no_progress,
) -> BatchResult:
    """Explain every file into the sinks; by default rows, overlays and a page in ``out``, then _SUCCESS.

    Stopped and started again with the same job it goes on where it was. Raises DataError when ``out`` holds
    another.
    """
    claim_folder(job, out)
    sinks = default_sinks(job, bundle, out) if sinks is None else sinks
    worker = BatchWorker(job, explainer or Explainer(bundle, job.engine, precision=job.precision))
    waiting = missing_parts(job, sinks)
    done = resumed = len(job.files) - sum(len(part.files) for part in waiting)
    for part in waiting:
        write_part(worker, part, sinks)
        done += len(part.files)
        progress("explaining", done, len(job.files))
    return finish_job(out, sinks, resumed=resumed)


def missing_parts(job: ExplainJob, sinks: Sequence[Sink]) -> list[JobPart]:
    """Return the parts that no earlier run has finished."""
    parts = [
        JobPart(f"part-{start // _PART_SIZE:05d}", job.files[start : start + _PART_SIZE])
        for start in range(0, len(job.files), _PART_SIZE)
    ]
    return [part for part in parts if not all(sink.has_part(part.name) for sink in sinks)]


def write_part(worker: BatchWorker, part: JobPart, sinks: Sequence[Sink]) -> None:
    """Explain the files of a part into the sinks."""
    for result in worker.explain_files(part.files):
        for sink in sinks:
            sink.add(result)
    for sink in sinks:
        sink.end_part(part.name)


def finish_job(out: Path, sinks: Sequence[Sink], *, resumed: int) -> BatchResult:
    """Finish the sinks and write _SUCCESS once every part is there."""
    for sink in sinks:
        sink.finish()
    atomic_write(out / "_SUCCESS", b"")
    rows = read_rows(out)
    errors = sum(row["status"] == "error" for row in rows)
    return BatchResult(out=out, pictures=len(rows), errors=errors, resumed=resumed)


def claim_folder(job: ExplainJob, out: Path) -> None:
    """Make ``out`` this job's folder, or find that it is already; raises DataError when it is another's."""
    note = out / JOB_NOTE
    content = json.dumps(
        {
            "key": job.key,
            "model_digest": job.model_digest,
            **job.settings(),
            "pictures": len(job.files),
        },
        indent=2,
    )
    if note.exists():
        if note.read_text() != content:
            raise DataError(
                f"The folder {out} holds another job (other pictures, model or options); name a new one."
            )
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"The folder {out} is not empty and holds no explain job; name a new one.")
    for folder in (out / "rows", out / "overlays"):
        folder.mkdir(parents=True, exist_ok=True)
    for leftover in out.rglob(".*.part"):
        leftover.unlink()
    atomic_write(note, content.encode())
