"""Whether images are like those of a reference: counts in its bins, and the tests between them.

Counts can be added, so windows of time, workers and batches are sums of counts; nothing else of an image is
kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from models.reference import Observation, Reference

_STEPS = 50
"""Bins of a figure with many values; the tests are made at their edges."""
_PSI_BINS = 10
_FEW_VALUES = 20
"""Up to so many different values each has a bin of its own."""
_FEWEST = 30
"""Images below which nothing is told apart."""
DEFAULT_LEVEL = 0.01
"""Chance that a window without drift raises an alarm, all figures together."""
LARGE_PSI = 0.2
"""What credit scoring calls a shift that matters; below it a difference is not worth an alarm, however
certain."""

CLASSES, EMPTY = "predicted classes", "no positive evidence"


@dataclass(frozen=True)
class Bins:
    """The bins of one figure, by the values that a reference has of it."""

    edges: np.ndarray = field(repr=False)
    """(B - 1,) ascending; a value on an edge belongs above it."""
    reference: np.ndarray = field(repr=False)
    """(B,) counts of the reference's own values."""

    @classmethod
    def of(cls, values: np.ndarray) -> Bins:
        """Make about fifty bins of equally many of the sorted values, or one for each of a few."""
        distinct = np.unique(values)
        if len(distinct) <= _FEW_VALUES:
            margin = np.maximum(np.abs(distinct) * 1e-6, 1e-9)
            edges = np.unique(np.concatenate([distinct - margin, distinct + margin]))
        else:
            edges = np.unique(np.quantile(values, np.linspace(0, 1, _STEPS + 1)[1:-1]))
        return cls(edges, np.bincount(np.searchsorted(edges, values, side="right"), minlength=len(edges) + 1))

    def place(self, value: float) -> int:
        """Return the number of a value's bin."""
        return int(np.searchsorted(self.edges, value, side="right"))


class Counts:
    """How many images fell into which bin of which figure."""

    def __init__(self, reference: Reference) -> None:
        self.bins = {name: Bins.of(values) for name, values in reference.figures.items()}
        self.figures = {name: np.zeros(len(bins.edges) + 1, int) for name, bins in self.bins.items()}
        self.predicted = np.zeros(len(reference.predicted), int)
        self.maps = self.empty = 0

    @property
    def images(self) -> int:
        """How many images were counted."""
        return int(self.predicted.sum())

    def add(self, observation: Observation) -> None:
        """Count one image."""
        self.predicted[observation.predicted] += 1
        if observation.empty is not None:
            self.maps += 1
            self.empty += observation.empty
        for name, value in observation.figures.items():
            if name in self.bins and math.isfinite(value):
                self.figures[name][self.bins[name].place(value)] += 1

    def add_counts(self, content: Mapping[str, Any]) -> None:
        """Add what :meth:`to_dict` returned; raises ValueError, KeyError or TypeError for anything else."""
        rows = [(self.figures[name], counts) for name, counts in content["figures"].items()]
        for own, counts in (*rows, (self.predicted, content["predicted"])):
            for place, count in counts.items():
                if not 0 <= int(place) < len(own):
                    raise ValueError(f"There is no bin {place}.")
                own[int(place)] += count
        self.maps += content["maps"]
        self.empty += content["empty"]

    def to_dict(self) -> dict[str, Any]:
        """Return the counts that are not 0, for JSON."""
        return {
            "figures": {name: _sparse(counts) for name, counts in self.figures.items()},
            "predicted": _sparse(self.predicted),
            "maps": self.maps,
            "empty": self.empty,
        }


def _sparse(counts: np.ndarray) -> dict[str, int]:
    return {str(place): int(counts[place]) for place in np.flatnonzero(counts)}


@dataclass(frozen=True, slots=True)
class DriftResult:
    """One figure of a window beside the reference's."""

    figure: str
    test: str
    """Kolmogorov-Smirnov or chi-square."""
    images: int
    reference_images: int
    statistic: float
    p_value: float
    psi: float
    """Population stability index over about ten bins: the sum of (p - q) ln(p / q)."""
    alarm: bool
    """Whether the difference is certain beyond the level and its PSI is at least 0.2."""
    enough: bool
    """Whether there are images enough to tell."""


def compare_to_reference(
    counts: Counts, reference: Reference, *, level: float = DEFAULT_LEVEL
) -> list[DriftResult]:
    """Compare a window with a reference, figure by figure; the level is shared out among them
    (Bonferroni).
    """
    rows = [(name, "figure", counts.figures[name], counts.bins[name].reference) for name in counts.bins]
    rows.append((CLASSES, "classes", counts.predicted, reference.predicted))
    if reference.maps:
        rows.append((EMPTY, "classes", np.array([counts.empty, counts.maps - counts.empty]),
                     np.array([reference.empty, reference.maps - reference.empty])))  # fmt: skip
    return _compare(rows, level)


def compare_counts(counts: Counts, other: Counts, *, level: float = DEFAULT_LEVEL) -> list[DriftResult]:
    """Compare two windows of one reference's bins, the second being what the first is held against."""
    rows = [(name, "figure", counts.figures[name], other.figures[name]) for name in counts.bins]
    rows.append((CLASSES, "classes", counts.predicted, other.predicted))
    rows.append((EMPTY, "classes", np.array([counts.empty, counts.maps - counts.empty]),
                 np.array([other.empty, other.maps - other.empty])))  # fmt: skip
    return _compare(rows, level)


def _compare(rows: Iterable[tuple[str, str, np.ndarray, np.ndarray]], level: float) -> list[DriftResult]:
    rows = list(rows)
    results = []
    for name, kind, own, before in rows:
        count, count_before = int(own.sum()), int(before.sum())
        enough = min(count, count_before) >= _FEWEST
        if not enough:
            statistic, p_value, psi = 0.0, 1.0, 0.0
        elif kind == "figure":
            statistic, p_value = kolmogorov_smirnov(own, before)
            psi = population_stability(own, before)
        else:
            statistic, p_value = chi_square(own, before)
            psi = population_stability(own, before, bins=len(own))
        alarm = enough and p_value < level / len(rows) and psi >= LARGE_PSI
        test = "Kolmogorov-Smirnov" if kind == "figure" else "chi-square"
        results.append(DriftResult(name, test, count, count_before, statistic, p_value, psi, alarm, enough))
    return results


def kolmogorov_smirnov(own: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """Return the largest difference of the two cumulative shares at the bins' edges, and its p-value by the
    limit distribution of two samples (Smirnov 1948); edges make it no larger than that of the values.
    """
    shares = np.cumsum(own) / own.sum() - np.cumsum(before) / before.sum()
    statistic = float(np.abs(shares).max())
    scaled = statistic * math.sqrt(own.sum() * before.sum() / (own.sum() + before.sum()))
    return statistic, kolmogorov_survival(scaled)


def kolmogorov_survival(scaled: float) -> float:
    """Return the chance of a scaled statistic at least as large: 2 sum (-1)^(k-1) exp(-2 k² x²)."""
    if scaled < 0.2:
        return 1.0
    terms = [(-1) ** (k - 1) * math.exp(-2 * k * k * scaled * scaled) for k in range(1, 101)]
    return min(1.0, max(0.0, 2 * math.fsum(terms)))


def chi_square(own: np.ndarray, before: np.ndarray) -> tuple[float, float]:
    """Return Pearson's statistic that two rows of counts come from one distribution, and its p-value.

    Classes that are expected fewer than five times are taken together, as the limit distribution asks for.
    """
    table = np.stack([own, before]).astype(np.float64)
    table = table[:, table.sum(axis=0) > 0]
    expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    rare = (expected < 5).any(axis=0)
    if rare.sum() > 1:
        table = np.column_stack([table[:, ~rare], table[:, rare].sum(axis=1)])
        expected = table.sum(axis=1, keepdims=True) * table.sum(axis=0) / table.sum()
    freedom = table.shape[1] - 1
    if freedom < 1:
        return 0.0, 1.0
    statistic = float(((table - expected) ** 2 / expected).sum())
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return statistic, float(torch.special.gammaincc(half[0], half[1]))


def population_stability(own: np.ndarray, before: np.ndarray, *, bins: int = _PSI_BINS) -> float:
    """Return the population stability index of two rows of counts, neighbours taken together to about so many
    bins of equal counts; half an image is added to each bin, for one that is empty would make it infinite.
    """
    if len(before) > bins:
        places = np.minimum((np.cumsum(before) - before / 2) / before.sum() * bins, bins - 1).astype(int)
        own, before = (np.bincount(places, weights=row, minlength=bins) for row in (own, before))
    present = (own + before) > 0
    own, before = own[present] + 0.5, before[present] + 0.5
    shares, shares_before = own / own.sum(), before / before.sum()
    return float(((shares - shares_before) * np.log(shares / shares_before)).sum())
