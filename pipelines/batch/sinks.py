"""Where the results of a batch job go: Parquet rows, overlays, and a page to look at.

To add a place, write a :class:`Sink` and pass it to the job (docs/how-to/add-a-sink.md). A job is cut into
parts; every sink is given the images of a part one by one, then the part's end. A part counts as done when
every sink has it, so a job that was killed goes on with the first part that one of them lacks.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq

from models.bundle import Bundle
from models.images.encode import encode_image
from pipelines.batch.index_page import render_index
from pipelines.batch.job import ExplainJob
from pipelines.batch.store import LocalStore, ObjectStore, Store, open_store

ROWS, OVERLAYS = "rows", "overlays"
"""Folders of a job's results."""
OBSERVED_COLUMNS = (
    "novelty",
    "novelty_percentile",
    "concentration",
    "centre_x",
    "centre_y",
    "brightness",
    "contrast",
    "sharpness",
)
"""What a picture and its map are like in figures (:data:`models.reference.FIGURES`), for `lucida drift`;
those of the map, and ``map_empty``, where it is of the predicted class by the default method."""

MORE_TARGETS = pa.struct(
    [
        pa.field("role", pa.string()),
        pa.field("target", pa.string()),
        pa.field("against", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("unit", pa.string()),
        pa.field("grid", pa.list_(pa.float32())),
        pa.field("status", pa.string()),
        pa.field("border_mass", pa.float64()),
    ]
)
"""A further target of a picture: its role ("truth", "contrast", "top2" …), map and figures."""
ROW_SCHEMA = pa.schema(
    [
        pa.field("path", pa.string(), nullable=False),
        pa.field("digest", pa.string()),
        pa.field("width", pa.int32()),
        pa.field("height", pa.int32()),
        pa.field("prediction", pa.string()),
        pa.field("score", pa.float64()),
        pa.field("accepted", pa.list_(pa.string())),
        pa.field("scores", pa.map_(pa.string(), pa.float64())),
        pa.field("target", pa.string()),
        pa.field("against", pa.string()),
        pa.field("method", pa.string()),
        pa.field("unit", pa.string()),
        pa.field("block", pa.string()),
        pa.field("grid_rows", pa.int32()),
        pa.field("grid_cols", pa.int32()),
        pa.field("grid", pa.list_(pa.float32())),
        pa.field("seen_box", pa.list_(pa.float64())),
        pa.field("seen_share", pa.float64()),
        pa.field("full_scale", pa.float64()),
        pa.field("settings", pa.string()),
        pa.field("sanity", pa.string()),
        pa.field("border_mass", pa.float64()),
        pa.field("also", pa.list_(MORE_TARGETS)),
        *(pa.field(name, pa.float64()) for name in OBSERVED_COLUMNS),
        pa.field("map_empty", pa.bool_()),
        pa.field("features", pa.list_(pa.float32())),
        pa.field("faithfulness", pa.float64()),
        pa.field("faithfulness_percentile", pa.float64()),
        pa.field("verdict", pa.string()),
        pa.field("agreement", pa.float64()),
        pa.field("shift_spread", pa.float64()),
        pa.field("shift_correlation", pa.float64()),
        pa.field("best_stage", pa.string()),
        pa.field("hottest_change", pa.float64()),
        pa.field("warnings", pa.list_(pa.string())),
        pa.field("status", pa.string(), nullable=False),
        pa.field("error", pa.string()),
        pa.field("overlay", pa.string()),
        pa.field("model_digest", pa.string(), nullable=False),
        pa.field("truth", pa.string()),
        pa.field("extra", pa.string()),
    ]
)
"""One row for each image. ``grid`` holds the signed map row by row; ``also`` the further targets that were
asked for; ``features``, of unit length, are what the head sees, where the job keeps them; ``truth`` and
``extra`` (JSON) are what the source says; ``status`` is that of the attribution, or "error"."""

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True, slots=True)
class ImageResult:
    """The result of a job for one image."""

    name: str
    """Path within the source."""
    row: dict[str, Any]
    """Values of :data:`ROW_SCHEMA`."""
    overlay: PIL.Image.Image | None = field(default=None, repr=False)
    """None for an image that could not be used."""
    figures: dict[str, PIL.Image.Image] = field(default_factory=dict, repr=False)
    """Figures that were asked for, by name."""


class Sink(Protocol):
    """A place that results go to."""

    def has_part(self, part: str) -> bool:
        """Return whether this part is complete here; a sink that keeps no parts says yes."""
        ...

    def add(self, result: ImageResult) -> None:
        """Take the result of one image of the present part."""
        ...

    def end_part(self, part: str) -> None:
        """Make the part visible, whole."""
        ...

    def finish(self) -> None:
        """Take note that every part is there."""
        ...


def default_sinks(job: ExplainJob, bundle: Bundle, out: Path | str) -> list[Sink]:
    """Return the sinks of ``lucida explain``: overlays, rows, and the page, and FiftyOne's where the job has
    it.
    """
    store = open_store(out)
    sinks: list[Sink] = [OverlaySink(store), ParquetSink(store, job), IndexPageSink(job, bundle, store)]
    if job.fiftyone:
        from pipelines.batch.fiftyone_export import FiftyOneSink

        # Before the rows: a part whose rows are there has its heatmaps.
        sinks.insert(0, FiftyOneSink(store, job))
    return sinks


class ParquetSink:
    """A sink that writes one Parquet file for each part."""

    def __init__(self, store: Store, job: ExplainJob) -> None:
        self._store = store
        self._schema = ROW_SCHEMA.with_metadata({"camera_lucida.job": json.dumps(job.settings())})
        self._rows: list[dict[str, Any]] = []

    def has_part(self, part: str) -> bool:
        """Return whether the part's file is there."""
        return self._store.exists(f"{ROWS}/{part}.parquet")

    def add(self, result: ImageResult) -> None:
        """Keep a row for the part's file."""
        self._rows.append(result.row)

    def end_part(self, part: str) -> None:
        """Write the part's file."""
        rows, self._rows = self._rows, []
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows, schema=self._schema), buffer)
        self._store.write(f"{ROWS}/{part}.parquet", buffer.getvalue())

    def finish(self) -> None:
        """Do nothing more: the files are complete."""


class OverlaySink:
    """A sink that writes overlays and figures as JPEG files; those of an unfinished part are written
    again.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def has_part(self, part: str) -> bool:
        """Return True: files are named by their images, not by parts."""
        return True

    def add(self, result: ImageResult) -> None:
        """Write the files of one image."""
        name = f"{OVERLAYS}/{overlay_name(result.name)}"
        if result.overlay is not None:
            self._store.write(name, encode_image(result.overlay), whole=False)
        for figure, drawing in result.figures.items():
            file = f"{name.removesuffix('.jpg')}-{figure}.jpg"
            self._store.write(file, encode_image(drawing), whole=False)

    def end_part(self, part: str) -> None:
        """Do nothing more: the files are there."""

    def finish(self) -> None:
        """Do nothing more: the files are there."""


class IndexPageSink:
    """A sink that writes index.html from the rows, once they are all there."""

    def __init__(self, job: ExplainJob, bundle: Bundle, store: Store) -> None:
        self._job, self._bundle, self._store = job, bundle, store

    def has_part(self, part: str) -> bool:
        """Return True: the page is made from the rows."""
        return True

    def add(self, result: ImageResult) -> None:
        """Do nothing: the page is made from the rows."""

    def end_part(self, part: str) -> None:
        """Do nothing: the page is made from the rows."""

    def finish(self) -> None:
        """Write the page."""
        rows = read_rows(self._store, leave_out=("grid", "features", "scores"))
        page = render_index(self._job, self._bundle, rows, self._store)
        self._store.write("index.html", page.encode())


def read_rows(
    out: Store | Path | str, *, leave_out: Sequence[str] = ("features",), only: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return all rows of a job's folder, in the order of its parts: with these columns only, or with all but
    those left out.
    """
    store = out if isinstance(out, LocalStore | ObjectStore) else open_store(out)  # type: ignore[arg-type]
    columns = [name for name in only or ROW_SCHEMA.names if only or name not in leave_out]
    rows: list[dict[str, Any]] = []
    for name in sorted(file.name for file in store.files(ROWS) if file.name.endswith(".parquet")):
        with store.open(name) as file:
            rows += pq.read_table(file, schema=ROW_SCHEMA, columns=columns).to_pylist()
    return rows


def overlay_name(path: str) -> str:
    """Return a file name for an image's overlay: readable, safe anywhere, different for different paths."""
    stem = _UNSAFE.sub("_", Path(path).stem)[:60] or "picture"
    return f"{stem}-{hashlib.sha256(path.encode()).hexdigest()[:10]}.jpg"
