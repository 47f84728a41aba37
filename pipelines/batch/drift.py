"""Whether the pictures of a batch are like those of another, or like those that its model was validated
on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.metrics.drift import DEFAULT_LEVEL, Counts, DriftResult, compare_to_reference
from models.observer import build_reference
from models.reference import FIGURES, Observation, Reference
from pipelines.batch.sinks import read_rows
from pipelines.errors import DataError

_COLUMNS = {"border": "border_mass"}
"""Figures whose columns have another name."""


@dataclass(frozen=True, slots=True)
class BatchDrift:
    """A batch beside what it is held against."""

    batch: str
    against: str
    images: int
    left_out: int
    """Pictures of the batch that could not be used."""
    results: tuple[DriftResult, ...]

    @property
    def drifted(self) -> tuple[str, ...]:
        """Names of the figures that drifted."""
        return tuple(result.figure for result in self.results if result.alarm)

    @property
    def summary(self) -> str:
        """The finding in a sentence."""
        if not any(result.enough for result in self.results):
            return "There are too few pictures to tell: both sides need at least 30."
        if self.drifted:
            names = ", ".join(self.drifted)
            return f"{names[0].upper()}{names[1:]}: different from {self.against}, beyond chance and by much."
        return f"Nothing differs from {self.against} beyond chance and by much."


def compare_batch(
    folder: Path, classes: Sequence[str], reference: Reference, *, against: str, level: float = DEFAULT_LEVEL
) -> BatchDrift:
    """Hold a finished batch of `lucida explain` against a reference; raises DataError.

    ``level`` is the chance of an alarm without drift, all figures together.
    """
    observations, left_out = read_observations(folder, classes)
    counts = Counts(reference)
    for item in observations:
        counts.add(item)
    results = compare_to_reference(counts, reference, level=level)
    return BatchDrift(folder.name, against, len(observations), left_out, tuple(results))


def reference_of_batch(folder: Path, classes: Sequence[str]) -> Reference:
    """Return a reference that is made of a batch; raises DataError."""
    observations, _ = read_observations(folder, classes)
    return build_reference(observations, classes=len(classes))


def read_classes(folder: Path) -> list[str]:
    """Return the classes of the model that explained a batch; raises DataError."""
    rows = _rows(folder)
    scores = next((row["scores"] for row in rows if row["scores"]), None)
    if scores is None:
        raise DataError(f"No picture of the batch {folder} could be used, so there is nothing to compare.")
    return sorted(name for name, _ in scores)


def read_digest(folder: Path) -> str:
    """Return the digest of the bundle that explained a batch; raises DataError."""
    return str(_rows(folder)[0]["model_digest"])


def read_observations(folder: Path, classes: Sequence[str]) -> tuple[list[Observation], int]:
    """Return the figures of a batch's pictures, and how many could not be used; raises DataError for a folder
    that is no finished batch, or of a model with other classes.
    """
    rows = _rows(folder)
    usable = [row for row in rows if row["status"] != "error"]
    odd = {row["prediction"] for row in usable} - set(classes)
    if odd:
        raise DataError(f"The batch {folder} has the class {sorted(odd)[0]!r}, which the other side has not.")
    return [_observation(row, classes) for row in usable], len(rows) - len(usable)


def _rows(folder: Path) -> list[dict[str, Any]]:
    if not (folder / "_SUCCESS").is_file():
        raise DataError(f"{folder} is no finished batch: `lucida explain` writes _SUCCESS there at its end.")
    rows = read_rows(folder, leave_out=())
    if not rows:
        raise DataError(f"The batch {folder} has no pictures.")
    return rows


def _observation(row: dict[str, Any], classes: Sequence[str]) -> Observation:
    """Return a row's figures; those of its map where it answers the reference's own question."""
    figures = {name: row.get(_COLUMNS.get(name, name)) for name in FIGURES}
    figures |= {"megapixels": row["width"] * row["height"] / 1e6, "aspect": row["width"] / row["height"]}
    if row["concentration"] is None:
        figures["border"] = None
    return Observation(
        {name: float(value) for name, value in figures.items() if value is not None},
        list(classes).index(row["prediction"]),
        row["map_empty"],
        None if row["features"] is None else np.array(row["features"]),
    )
