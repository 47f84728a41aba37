"""The figures of a benchmark of methods, and the method that does best for each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.attribution.registry import METHODS
from pipelines.evaluation.method_benchmark import CEILING, DELETION, GRID_TASKS, Candidate, Row

_SURE = 2.0
"""Standard errors by which a figure must be above a control's."""
WHICH_REGION, WHAT_IT_LOSES, FINEST = (
    "Which region is of this class?",
    "What would the score lose?",
    "What is the finest detail?",
)
_FINER = 1.5
"""Times as many cells along a side as the Grad-CAM block's: what counts as fine."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean with its standard error."""

    mean: float
    error: float
    count: int

    def __str__(self) -> str:
        """Write both."""
        return f"{self.mean:.3f} ± {self.error:.3f}" if self.count > 1 else f"{self.mean:.3f}"


@dataclass(frozen=True, slots=True)
class MethodFigures:
    """The figures of a candidate, or of a control, in one task."""

    task: str
    candidate: str
    figures: dict[str, Figure]


@dataclass(frozen=True, slots=True)
class BestMethod:
    """The candidate that does best for a question; None where none does better than its control."""

    question: str
    candidate: str | None
    why: str


def summarize_rows(rows: Sequence[Row]) -> list[MethodFigures]:
    """Return each candidate's figures in each task, in the order of the rows."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["task"], row["candidate"]), []).append(row)
    return [
        MethodFigures(task, candidate, {name: _figure(group, name) for name in _names(group)})
        for (task, candidate), group in groups.items()
    ]


def choose_best(
    figures: Sequence[MethodFigures], candidates: Sequence[Candidate], cells: Mapping[str, int]
) -> list[BestMethod]:
    """Return the best candidate for each question; ``cells`` says how many cells along its shorter side each
    one's maps have.
    """
    coarse = min(cells.values(), default=0)
    grids = [item for item in figures if item.task in GRID_TASKS]
    task = grids[0].task if grids else None
    on_grid = {item.candidate: item.figures for item in grids if item.task == task}
    specific = {
        name: own for name, own in on_grid.items()
        if own["above_other_class"].mean > _SURE * np.nan_to_num(own["above_other_class"].error)
    }  # fmt: skip
    fine = {name: own for name, own in specific.items() if cells.get(name, 0) >= _FINER * coarse}
    losing = {
        item.candidate: item.figures
        for item in figures
        if item.task == DELETION and item.candidate != CEILING
    }
    order = [str(item) for item in sorted(candidates, key=lambda item: METHODS[item.method].grid != "block")]
    return [
        _best(WHICH_REGION, specific, "auroc", order, f"AUROC of its cell in {task}", 0.5),
        _best(WHAT_IT_LOSES, losing, "single", order, "rank correlation with what single patches lose", 0.0),
        _best(FINEST, fine, "auroc", order, f"AUROC of its cell in {task}, by finer cells", 0.5),
    ]


def _best(
    question: str, figures: dict[str, dict[str, Figure]], name: str, order: Sequence[str], what: str,
    chance: float,
) -> BestMethod:  # fmt: skip
    above = {
        candidate: own[name] for candidate, own in figures.items()
        if own[name].mean > chance + _SURE * np.nan_to_num(own[name].error)
    }  # fmt: skip
    if not above:
        return BestMethod(question, None, "No method is above chance by two standard errors.")
    # Of two that do as well, the cheaper one, which comes first.
    best = max(above.values(), key=lambda figure: figure.mean)
    level = best.mean - np.nan_to_num(best.error)
    chosen = next(candidate for candidate in order if candidate in above and above[candidate].mean >= level)
    others = ", ".join(
        f"{candidate} {above[candidate]}" for candidate in order if candidate in above and candidate != chosen
    )
    return BestMethod(question, chosen, f"{what}: {above[chosen]}{f'; others: {others}' if others else ''}.")


def _names(rows: Sequence[Row]) -> list[str]:
    if rows[0]["task"] == DELETION:
        return [name for name in ("single", "blur", "mean", "area") if _value(rows[0], name) is not None]
    return ["auroc", "average_precision", "pointing", "energy", "squared_energy", "spot", "other_class",
            "above_other_class"]  # fmt: skip


def _value(row: Row, name: str) -> float | None:
    """Return a figure of a row, or one that is made of two of them."""
    if name == "single":
        return float(row["blur"] + row["mean"]) / 2
    if name == "above_other_class":
        return float(row["auroc"] - row["other_class"])
    return row.get(name)


def _figure(rows: Sequence[Row], name: str) -> Figure:
    """Return the mean over the samples, each of which may have several rows, with its standard error."""
    by_sample: dict[int, list[float]] = {}
    for row in rows:
        value = _value(row, name)
        if value is not None and np.isfinite(value):
            by_sample.setdefault(row["sample"], []).append(value)
    means = np.array([np.mean(values) for values in by_sample.values()])
    if not len(means):
        return Figure(float("nan"), float("nan"), 0)
    error = float(means.std(ddof=1) / np.sqrt(len(means))) if len(means) > 1 else float("nan")
    return Figure(float(means.mean()), error, len(means))
