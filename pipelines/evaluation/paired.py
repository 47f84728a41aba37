"""Differences between two models on the same pictures, with the interval that the pictures allow.

Pictures are drawn again with replacement, the same ones for both models, and the figure is computed anew each
time (the paired bootstrap; Efron & Tibshirani 1993). How many answers changed sides is tested exactly
(McNemar 1947).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Figure = Callable[[np.ndarray], float]
"""Indices of pictures, possibly repeated, to a figure; NaN where they do not allow one."""
_DRAWS = 2000
_LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure with the interval in which it lies at some level of confidence."""

    value: float
    low: float
    high: float
    level: float = _LEVEL

    def __str__(self) -> str:
        """Write the figure with its interval."""
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"


def bootstrap(figure: Figure, count: int, *, level: float = _LEVEL, seed: int = 0) -> Interval:
    """Return a figure of ``count`` pictures with its percentile interval; the same for the same input.

    NaN where the pictures do not allow the figure; draws that do not are left out.
    """
    nothing = Interval(float("nan"), float("nan"), float("nan"), level)
    if not count:
        return nothing
    value = figure(np.arange(count))
    generator = np.random.default_rng(seed)
    values = np.array([figure(generator.integers(0, count, count)) for _ in range(_DRAWS)])
    finite = values[np.isfinite(values)]
    if not np.isfinite(value) or not len(finite):
        return nothing
    tail = (1 - level) / 2
    low, high = np.quantile(finite, [tail, 1 - tail])
    return Interval(float(value), float(low), float(high), level)


def paired_difference(
    before: Figure, after: Figure, count: int, *, level: float = _LEVEL, seed: int = 0
) -> Interval:
    """Return how much higher ``after`` is than ``before`` on the same pictures, with its interval."""
    return bootstrap(lambda chosen: after(chosen) - before(chosen), count, level=level, seed=seed)


@dataclass(frozen=True, slots=True)
class Flips:
    """Answers that changed sides between two models."""

    broken: int
    """Right before, wrong now."""
    fixed: int
    p_value: float
    """Of the exact test that as many were broken as fixed."""

    def __str__(self) -> str:
        """Write it as a reader needs it."""
        return f"{self.broken} broken, {self.fixed} fixed (McNemar p = {self.p_value:.2g})"


def count_flips(before: Sequence[bool], after: Sequence[bool]) -> Flips:
    """Return the flips between the right answers of two models on the same pictures, tested by McNemar."""
    broken = sum(one and not other for one, other in zip(before, after, strict=True))
    fixed = sum(other and not one for one, other in zip(before, after, strict=True))
    from scipy.stats import binomtest

    p_value = float(binomtest(broken, broken + fixed).pvalue) if broken + fixed else 1.0
    return Flips(broken, fixed, p_value)
