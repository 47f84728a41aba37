"""The parts that a job is cut into: what is written, taken up again, and counted at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.batch.job import ExplainJob
from pipelines.batch.sinks import Sink, read_rows
from pipelines.batch.sources import SourceItem
from pipelines.batch.store import open_store

if TYPE_CHECKING:
    from pipelines.batch.worker import BatchWorker

PART_SIZE = 64
NOTHING_BLAMED: Mapping[str, str] = {}


@dataclass(frozen=True, slots=True)
class BatchResult:
    """The outcome of a job."""

    out: Path | str
    pictures: int
    errors: int
    resumed: int
    """Images that an earlier run of the same job had done already."""

    @property
    def page(self) -> str:
        """Where the page is."""
        return f"{self.out}/index.html"


@dataclass(frozen=True, slots=True)
class JobPart:
    """Some of a job's pictures."""

    name: str
    items: tuple[SourceItem, ...]


def missing_parts(job: ExplainJob, sinks: Sequence[Sink]) -> list[JobPart]:
    """Return the parts that no earlier run has finished."""
    items = job.source.items
    parts = [
        JobPart(f"part-{start // PART_SIZE:05d}", items[start : start + PART_SIZE])
        for start in range(0, len(items), PART_SIZE)
    ]
    return [part for part in parts if not sinks or not all(sink.has_part(part.name) for sink in sinks)]


def write_part(
    worker: BatchWorker,
    part: JobPart,
    sinks: Sequence[Sink],
    *,
    blamed: Mapping[str, str] = NOTHING_BLAMED,
    begun: Callable[[str], object] = lambda name: None,
) -> None:
    """Explain the pictures of a part into the sinks; those in ``blamed`` are not read, for the reason given
    there.
    """
    good = [item for item in part.items if item.name not in blamed]
    results = worker.explain_items(good, begun=begun)
    for item in part.items:
        reason = blamed.get(item.name)
        result = next(results) if reason is None else worker.failed(item, reason)
        for sink in sinks:
            sink.add(result)
    for sink in sinks:
        sink.end_part(part.name)


def finish_job(out: Path | str, sinks: Sequence[Sink], *, resumed: int) -> BatchResult:
    """Finish the sinks and write _SUCCESS once every part is there."""
    for sink in sinks:
        sink.finish()
    store = open_store(out)
    store.write("_SUCCESS", b"")
    statuses = [row["status"] for row in read_rows(store, only=("status",))]
    return BatchResult(out, len(statuses), statuses.count("error"), resumed)
