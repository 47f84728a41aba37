"""How far maps agree: by the order in which they rank the places, and by what they mark most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from torch.nn import functional as F

from models.attribution.result import Attribution

_HOTTEST_SHARE = 0.2
_HIGH, _LOW = 0.6, 0.3


@dataclass(frozen=True, slots=True)
class MethodAgreement:
    """The agreement of several maps of one target."""

    methods: tuple[str, ...]
    correlations: tuple[tuple[float, ...], ...]
    """Rank correlation of each pair of methods, 1 on the diagonal."""
    overlap: float
    """Mean over the pairs: of the fifth of the image that each marks most, the share marked by both."""

    @property
    def mean(self) -> float:
        """Mean rank correlation over the pairs."""
        return float(np.mean([self.correlations[i][j] for i, j in combinations(range(len(self.methods)), 2)]))

    @property
    def verdict(self) -> str:
        """In words."""
        figure = f"mean rank correlation {self.mean:.2f}"
        if self.mean >= _HIGH:
            return f"The methods point at much the same places ({figure})."
        if self.mean >= _LOW:
            return f"The methods agree in part ({figure}); look at each."
        return f"The methods disagree ({figure}): no single one of these maps should be taken for the reason."


def measure_agreement(attributions: Sequence[Attribution]) -> MethodAgreement:
    """Compare two or more maps of one image and target, on the coarsest grid among them.

    Raises ValueError for fewer than two, and for maps of different targets.
    """
    if len(attributions) < 2 or len({attribution.target for attribution in attributions}) != 1:
        raise ValueError("Agreement needs two or more maps of one target.")
    shape = min(
        (attribution.values.shape for attribution in attributions), key=lambda shape: shape[0] * shape[1]
    )
    grids = [resample_map(attribution.values, shape) for attribution in attributions]
    correlations = tuple(tuple(rank_correlation(one, other) for other in grids) for one in grids)
    pairs = [hottest_overlap(one, other) for one, other in combinations(grids, 2)]
    return MethodAgreement(
        tuple(attribution.method for attribution in attributions), correlations, float(np.mean(pairs))
    )


def resample_map(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return a map with other cells: means where they are larger."""
    if values.shape == shape:
        return values
    laid = F.interpolate(torch.from_numpy(values.copy())[None, None], tuple(shape), mode="area")
    resampled: np.ndarray = laid[0, 0].numpy()
    return resampled


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation of two maps of one shape; equal values share their rank. 0 where a
    map is constant.
    """
    ranks = [_ranks(values.ravel()) for values in (one, other)]
    if min(float(values.std()) for values in ranks) == 0.0:
        return 0.0
    return float(np.corrcoef(ranks)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[place]
    return ranks


def hottest_overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Return the share of the hottest fifth of the cells that two maps of one shape have in common."""
    count = max(1, round(_HOTTEST_SHARE * one.size))
    hottest = [set(np.argsort(-values.ravel(), kind="stable")[:count].tolist()) for values in (one, other)]
    return len(hottest[0] & hottest[1]) / count
