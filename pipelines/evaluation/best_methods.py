"""The figures of a benchmark of methods, and the method that does best for each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from models.attribution.registry import METHODS
from pipelines.evaluation.benchmark_tasks import DELETION, GRID, Row
from pipelines.evaluation.method_benchmark import Candidate

_SURE = 2.0
"""Standard errors by which a figure must be above a control's."""
WHICH_REGION, WHAT_IT_LOSES, FINEST = (
    "Which region is of this class?",
    "What would the score lose?",
    "What is the finest detail?",
)
FEWEST_SAMPLES = 3
"""Samples that a method must have been asked about."""
_OTHERS = 3
_DERIVED = {
    "single": {"blur", "mean"},
    "above_other_class": {"auroc", "other_class"},
    "above_other_picture": {"auroc", "other_picture"},
}
"""Figures that are made of two of a row."""
_FIGURES = (
    "auroc", "average_precision", "pointing", "energy", "squared_energy", "area", "spot", "other_class",
    "other_picture", "above_other_class", "above_other_picture", "single", "blur", "mean", "area_between",
    "parts", "ignored", "contrast", "completeness",
)  # fmt: skip
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
    task: str = ""
    """The task that decided it."""


def main_figure(row: Row) -> float:
    """Return the figure by which a map of a task is called good."""
    return next(
        float(value) for name in ("auroc", "parts", "single") if (value := _value(row, name)) is not None
    )


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
    """Return the best candidate for each question, whatever else was measured beside them; ``cells`` says how
    many cells along its shorter side each one's maps have.
    """
    order = [str(item) for item in sorted(candidates, key=lambda item: METHODS[item.method].grid != "block")]
    figures = [item for item in figures if item.candidate in order]
    coarse = min(cells.values(), default=0)
    grids = [item for item in figures if item.task.startswith(GRID)]
    task = grids[0].task if grids else None
    on_grid = {item.candidate: item.figures for item in grids if item.task == task}
    specific = {
        name: own for name, own in on_grid.items()
        if own["above_other_class"].mean > _SURE * np.nan_to_num(own["above_other_class"].error)
    }  # fmt: skip
    fine = {name: own for name, own in specific.items() if cells.get(name, 0) >= _FINER * coarse}
    losing = {item.candidate: item.figures for item in figures if item.task == DELETION}
    return [
        _best(WHICH_REGION, specific, "auroc", order, f"AUROC of its cell in {task}", 0.5, task or ""),
        _best(
            WHAT_IT_LOSES,
            losing,
            "single",
            order,
            "rank correlation with what single patches lose",
            0.0,
            DELETION,
        ),
        _best(FINEST, fine, "auroc", order, f"AUROC of its cell in {task}, by finer cells", 0.5, task or ""),
    ]


def _best(
    question: str, figures: dict[str, dict[str, Figure]], name: str, order: Sequence[str], what: str,
    chance: float, task: str,
) -> BestMethod:  # fmt: skip
    above = {
        candidate: own[name] for candidate, own in figures.items()
        if own[name].count >= FEWEST_SAMPLES and own[name].mean > chance + _SURE * own[name].error
    }  # fmt: skip
    if not figures:
        return BestMethod(
            question, None, "No method was measured; mosaics need pictures of four classes.", task
        )
    if not above:
        why = f"No method is above chance by two standard errors in {FEWEST_SAMPLES} samples or more."
        return BestMethod(question, None, why, task)
    # Of two that do as well, the cheaper one, which comes first.
    best = max(above.values(), key=lambda figure: figure.mean)
    level = best.mean - np.nan_to_num(best.error)
    chosen = next(candidate for candidate in order if candidate in above and above[candidate].mean >= level)
    others = ", ".join(
        f"{candidate} {above[candidate]}"
        for candidate in sorted(above, key=lambda item: -above[item].mean)[: _OTHERS + 1]
        if candidate != chosen
    )
    why = f"{what}: {above[chosen]}{f'; others: {others}' if others else ''}."
    return BestMethod(question, chosen, why, task)


def _names(rows: Sequence[Row]) -> list[str]:
    present = {*rows[0], *(name for name, parts in _DERIVED.items() if parts <= {*rows[0]})}
    return [name for name in _FIGURES if name in present]


def _value(row: Row, name: str) -> float | None:
    """Return a figure of a row, or one that is made of two of them."""
    if not _DERIVED.get(name, {name}) <= {*row}:
        return None
    if name == "single":
        return float(row["blur"] + row["mean"]) / 2
    if name in ("above_other_class", "above_other_picture"):
        return float(row["auroc"] - row[name.removeprefix("above_")])
    return float(row[name])


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
