"""Tests of effects and the correction for their number."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p values corrected for their number by Holm's step-down method (1979), in their order."""
    corrected = np.zeros(len(p_values))
    highest = 0.0
    for rank, place in enumerate(np.argsort(p_values, kind="stable")):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = highest
    return [float(value) for value in corrected]


def paired_p_value(differences: np.ndarray) -> float:
    """Return the one-sided p value of Wilcoxon's signed ranks that differences are above 0."""
    from scipy import stats

    return float(stats.wilcoxon(differences, alternative="greater").pvalue) if differences.any() else 1.0


def unpaired_p_value(one: np.ndarray, other: np.ndarray) -> float:
    """Return the one-sided p value of Mann and Whitney's test that one group is above the other."""
    from scipy import stats

    return float(stats.mannwhitneyu(one, other, alternative="greater").pvalue)
