"""Boxes of objects from a table beside the images: where the evidence should lie, coarser than masks say it.

``boxes.csv`` has the columns ``file``, ``xmin``, ``ymin``, ``xmax``, ``ymax`` (pixels of the upright image,
the last two exclusive), one line a box. ``file`` is a path within the folder; what the columns ``split`` and
``class`` say, where there are any, is put before it.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from pathlib import Path

from pipelines.data.listing import SkippedFile, normalize_name
from pipelines.errors import DataError

BOXES_FILE = "boxes.csv"
Box = tuple[float, float, float, float]
"""x0, y0, x1, y1."""
_EDGES = ("xmin", "ymin", "xmax", "ymax")


def read_boxes(root: Path, names: Iterable[str]) -> tuple[dict[str, tuple[Box, ...]], list[SkippedFile]]:
    """Return the boxes of each of the images ``names`` that has some, and the rows that name none of them.

    Raises DataError naming the line for a table that cannot be read.
    """
    path = root / BOXES_FILE
    if not path.is_file():
        return {}, []
    samples = {normalize_name(name): name for name in names}
    boxes: dict[str, list[Box]] = {}
    strangers: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            table = csv.DictReader(file)
            missing = [name for name in ("file", *_EDGES) if name not in (table.fieldnames or ())]
            if missing:
                raise DataError(f"{BOXES_FILE} lacks the columns {', '.join(missing)}.")
            for number, row in enumerate(table, start=2):
                inner = _name(row)
                if inner in samples:
                    boxes.setdefault(samples[inner], []).append(_box(row, number))
                else:
                    strangers[inner] = strangers.get(inner, 0) + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{BOXES_FILE} cannot be read: {error}.") from error
    skipped = [
        SkippedFile(
            f"{BOXES_FILE}: {inner}", f"No picture of that name is used; {count} boxes were left out."
        )
        for inner, count in strangers.items()
    ]
    return {name: tuple(listed) for name, listed in boxes.items()}, skipped


def _name(row: Mapping[str, str | None]) -> str:
    parts = [row.get(key) or "" for key in ("split", "class", "file")]
    return normalize_name("/".join(part.strip().replace("\\", "/") for part in parts if part.strip()))


def _box(row: Mapping[str, str | None], number: int) -> Box:
    try:
        x0, y0, x1, y1 = (float(row[edge] or "") for edge in _EDGES)
    except ValueError as error:
        raise DataError(f"{BOXES_FILE}, line {number}: xmin, ymin, xmax, ymax must be numbers.") from error
    if not (0 <= x0 < x1 < 1e6 and 0 <= y0 < y1 < 1e6):
        raise DataError(
            f"{BOXES_FILE}, line {number}: the box {x0:g}, {y0:g}, {x1:g}, {y1:g} must have 0 <= xmin < xmax "
            "and 0 <= ymin < ymax."
        )
    return x0, y0, x1, y1
