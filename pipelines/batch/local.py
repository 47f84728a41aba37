"""Run an ExplainJob on this machine: part by part, each renamed into place whole, so that a stopped job
resumes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from models.bundle import Bundle
from pipelines.batch.job import ExplainJob
from pipelines.batch.sinks import ROW_SCHEMA
from pipelines.batch.worker import BatchWorker
from pipelines.errors import DataError
from pipelines.reports.html import render_template

_PART = 64
_MOST_ON_PAGE = 600


@dataclass(frozen=True, slots=True)
class JobResult:
    """What a job came to."""

    out: Path
    pictures: int
    errors: int
    resumed: int
    """Pictures that an earlier run of the same job had done already."""


def run_local(
    job: ExplainJob, bundle: Bundle, out: Path, *, progress: Callable[[int, int], None] | None = None
) -> JobResult:
    """Explain every file into ``out``: rows/*.parquet, overlays/*.jpg, index.html and, at the end, _SUCCESS.

    Stopped and started again with the same job it goes on where it was. Raises DataError when ``out`` holds
    another.
    """
    claim_folder(job, out)
    waiting = missing_parts(job, out)
    resumed = len(job.files) - sum(len(part.files) for part in waiting)
    done = resumed
    explainer = BatchWorker(job, bundle)
    for part in waiting:
        write_part(explainer.explain_part(part.files, out / "overlays"), part.path)
        done += len(part.files)
        if progress:
            progress(done, len(job.files))
    return finish_job(job, bundle, out, resumed=resumed)


@dataclass(frozen=True, slots=True)
class JobPart:
    """Some of a job's files, and where their rows belong."""

    files: tuple[str, ...]
    path: Path


def missing_parts(job: ExplainJob, out: Path) -> list[JobPart]:
    """The parts that no earlier run has finished."""
    parts = [
        JobPart(job.files[start : start + _PART], out / "rows" / f"part-{start // _PART:05d}.parquet")
        for start in range(0, len(job.files), _PART)
    ]
    return [part for part in parts if not part.path.exists()]


def finish_job(job: ExplainJob, bundle: Bundle, out: Path, *, resumed: int) -> JobResult:
    """Write index.html and _SUCCESS once every part is there."""
    rows = pq.read_table(out / "rows", schema=ROW_SCHEMA).to_pylist()
    _write(out / "index.html", index_page(job, bundle, rows).encode())
    _write(out / "_SUCCESS", b"")
    errors = sum(row["status"] == "error" for row in rows)
    return JobResult(out=out, pictures=len(rows), errors=errors, resumed=resumed)


def index_page(job: ExplainJob, bundle: Bundle, rows: list[dict[str, Any]]) -> str:
    """A page of all overlays (at most 600), the errors first, then the least sure."""
    ordered = sorted(rows, key=lambda row: (row["status"] != "error", row["score"] or 0.0))
    counts: dict[str, int] = {}
    for row in rows:
        if row["prediction"]:
            counts[row["prediction"]] = counts.get(row["prediction"], 0) + 1
    origin = bundle.provenance
    sanity = bundle.sanity.methods.get(job.how.method) if bundle.sanity is not None else None
    return render_template(
        "explain_index.html.j2",
        title=f"{len(rows)} pictures explained",
        rows=ordered[:_MOST_ON_PAGE],
        hidden=max(0, len(rows) - _MOST_ON_PAGE),
        counts=sorted(counts.items(), key=lambda item: -item[1]),
        errors=sum(row["status"] == "error" for row in rows),
        facts={
            "model": origin.model,
            "version": origin.version or "not from a registry",
            "run": origin.run_id or "unknown",
            "bundle digest": origin.digest,
            "method": f"{job.how.method} at {job.block}",
            "class explained": job.target or "each picture's own prediction",
            "held against": job.how.against or "nothing",
            "shuffled weights": sanity.reason
            if sanity is not None
            else "not checked for this method and model",
        },
    )


def claim_folder(job: ExplainJob, out: Path) -> None:
    """Make ``out`` this job's folder, or find that it is already; raises DataError when it is another's."""
    note = out / "job.json"
    wanted = json.dumps(
        {
            "key": job.key,
            "model_digest": job.model_digest,
            **asdict(job.how),
            "pictures": len(job.files),
        },
        indent=2,
    )
    if note.exists():
        if note.read_text() != wanted:
            raise DataError(
                f"The folder {out} holds another job (other pictures, model or options); name a new one."
            )
    elif out.exists() and any(out.iterdir()):
        raise DataError(f"The folder {out} is not empty and holds no explain job; name a new one.")
    for folder in (out / "rows", out / "overlays"):
        folder.mkdir(parents=True, exist_ok=True)
    for leftover in out.rglob(".*.tmp"):
        leftover.unlink()
    _write(note, wanted.encode())


def write_part(rows: list[dict[str, Any]], path: Path) -> None:
    """Rows as a Parquet file that appears whole."""
    aside = path.with_name(f".{path.name}.tmp")
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), aside)
    aside.replace(path)


def _write(path: Path, data: bytes) -> None:
    aside = path.with_name(f".{path.name}.tmp")
    with aside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
