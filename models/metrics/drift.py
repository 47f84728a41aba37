"""Whether images are like those of a reference: counts in its bins, and the tests between them.

Counts can be added, so windows of time, workers and batches are sums of counts; nothing else of an image is
kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from models.reference import FeatureDistribution, Observation, Reference

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

LARGE_SHIFT = 0.005
"""Of the features' mean: its square length beyond what chance explains, as a share of their variance."""

CLASSES, EMPTY, FEATURES = "predicted classes", "no positive evidence", "features"


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
    """Numbers of images by the bins of each figure."""

    def __init__(self, reference: Reference) -> None:
        self.bins = {name: Bins.of(values) for name, values in reference.figures.items()}
        self.figures = {name: np.zeros(len(bins.edges) + 1, int) for name, bins in self.bins.items()}
        self.predicted = np.zeros(len(reference.predicted), int)
        self.maps = self.empty = 0
        size = 0 if reference.features is None else len(reference.features.mean)
        self.feature_sum, self.feature_images = np.zeros(size), 0

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
        if observation.features is not None and len(observation.features) == len(self.feature_sum):
            self.feature_sum += observation.features
            self.feature_images += 1
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
        self.feature_sum += np.array(content["feature_sum"], float)
        self.feature_images += content["feature_images"]
        self.maps += content["maps"]
        self.empty += content["empty"]

    def to_dict(self) -> dict[str, Any]:
        """Return the counts that are not 0, for JSON."""
        return {
            "figures": {name: _sparse(counts) for name, counts in self.figures.items()},
            "predicted": _sparse(self.predicted),
            "maps": self.maps,
            "empty": self.empty,
            "feature_sum": [round(value, 6) for value in self.feature_sum.tolist()],
            "feature_images": self.feature_images,
        }


def _sparse(counts: np.ndarray) -> dict[str, int]:
    return {str(place): int(counts[place]) for place in np.flatnonzero(counts)}


@dataclass(frozen=True, slots=True)
class DriftResult:
    """One figure of a window beside the reference's."""

    figure: str
    test: str
    """Kolmogorov-Smirnov, chi-square, or shift of the mean."""
    images: int
    reference_images: int
    statistic: float
    p_value: float
    psi: float
    """Population stability index over about ten bins: the sum of (p - q) ln(p / q); of the features the
    square shift of their mean as a share of their variance."""
    alarm: bool
    """Whether the difference is certain beyond the level, and large: a PSI of 0.2, a shift of 0.005."""
    enough: bool
    """Whether there are images enough to tell."""


def compare_to_reference(
    counts: Counts, reference: Reference, *, level: float = DEFAULT_LEVEL
) -> list[DriftResult]:
    """Compare a window with a reference, figure by figure; the level is shared out among them
    (Bonferroni).
    """
    results = [_compare_figure(name, counts.figures[name], counts.bins[name]) for name in counts.bins]
    results.append(_compare_classes(CLASSES, counts.predicted, reference.predicted))
    if reference.maps:
        own = np.array([counts.empty, counts.maps - counts.empty])
        before = np.array([reference.empty, reference.maps - reference.empty])
        results.append(_compare_classes(EMPTY, own, before))
    if reference.features is not None and counts.feature_images:
        results.append(_compare_features(counts, reference.features))
    return [
        replace(
            result,
            alarm=result.enough
            and result.p_value < level / len(results)
            and result.psi >= (LARGE_SHIFT if result.figure == FEATURES else LARGE_PSI),
        )
        for result in results
    ]


def _result(
    name: str, test: str, sizes: tuple[int, int], measure: Callable[[], tuple[float, float, float]]
) -> DriftResult:
    enough = min(sizes) >= _FEWEST
    statistic, p_value, psi = measure() if enough else (0.0, 1.0, 0.0)
    return DriftResult(name, test, *sizes, statistic, p_value, psi, False, enough)


def _compare_figure(name: str, own: np.ndarray, bins: Bins) -> DriftResult:
    before = bins.reference
    return _result(
        name, "Kolmogorov-Smirnov", (int(own.sum()), int(before.sum())),
        lambda: (*kolmogorov_smirnov(own, before), population_stability(own, before)),
    )  # fmt: skip


def _compare_classes(name: str, own: np.ndarray, before: np.ndarray) -> DriftResult:
    return _result(
        name, "chi-square", (int(own.sum()), int(before.sum())),
        lambda: (*chi_square(own, before), population_stability(own, before, bins=len(own))),
    )  # fmt: skip


def _compare_features(counts: Counts, features: FeatureDistribution) -> DriftResult:
    mean = counts.feature_sum / counts.feature_images
    return _result(
        FEATURES, "shift of the mean", (counts.feature_images, features.count),
        lambda: mean_shift(mean, counts.feature_images, features),
    )  # fmt: skip


def mean_shift(mean: np.ndarray, count: int, features: FeatureDistribution) -> tuple[float, float, float]:
    """Return the square distance of a window's mean features from the reference's, its p-value, and what of
    it chance does not explain, as a share of the features' variance.

    Without drift it is a sum of weighted chi-squares, taken as one chi-square of the same mean and variance
    (Satterthwaite 1946); unlike Hotelling's test it needs no more images than features (Bai and Saranadasa
    1996).
    """
    squared = float(((mean - features.mean) ** 2).sum())
    by_chance = features.total_variance * (1 / count + 1 / features.count)
    freedom = features.total_variance**2 / features.total_square
    p_value = chi_square_survival(freedom * squared / by_chance, freedom)
    return squared, p_value, max(0.0, squared - by_chance) / features.total_variance


def chi_square_survival(statistic: float, freedom: float) -> float:
    """Return the chance of a chi-square at least as large."""
    half = torch.tensor([freedom / 2, statistic / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


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
    return statistic, chi_square_survival(statistic, freedom)


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
