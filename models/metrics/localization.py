"""Whether a map lies on the object, where a mask or a box says where that is.

Two kinds of figures. Those that depend on the order of the cells alone, AUROC, average precision and
pointing, stay as they are when a map is squared. Energy does not: it rewards concentration, so that squaring
a map, which moves nothing, gains more than any better method; it has the squared map's beside it. All flatter
where objects lie in the middle, so each figure is to be read beside those of controls: a spot in the middle,
the map of another class, that of another picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from models.images.frame import Frame
from models.metrics.control_maps import centre_spot


@dataclass(frozen=True, slots=True)
class Localization:
    """Localization of one map and mask, or the mean over many."""

    auroc: float
    """Chance that a place inside the mask has more evidence than one outside, equal ones counting half: 0.5
    by chance."""
    average_precision: float
    """Share of the mask among the strongest places, averaged over the places of the mask; by chance, the
    area."""
    pointing: float
    """Whether the strongest place lies inside (Zhang et al. 2018): 1 or 0."""
    centre: float
    """Whether the middle of what the model saw does."""
    spot: float
    """AUROC of a round spot in the middle."""
    energy: float
    """Share of the positive evidence inside the mask (Wang et al. 2020), 0 to 1."""
    squared_energy: float
    """The same of the map squared: what concentration alone gains."""
    area: float
    """Share of what the model saw that is inside the mask: the energy of an even map."""


def localize(values: np.ndarray, frame: Frame, mask: np.ndarray) -> Localization | None:
    """Hold a map (rows, cols) against a boolean mask (height, width) of the upright image; None when the
    model saw nothing of the object, or all of it everywhere.

    Raises ValueError for a mask of another size.
    """
    if mask.shape != (frame.height, frame.width):
        raise ValueError(f"The mask is {mask.shape}, the picture {(frame.height, frame.width)}.")
    area = float(mask[frame.seen()].mean())
    if not 0.0 < area < 1.0:
        return None
    positive = np.maximum(values, 0.0)
    inside, outside = cell_areas(frame, mask, positive.shape)
    x0, y0, x1, y1 = frame.seen_box
    middle = (min(int((y0 + y1) / 2), frame.height - 1), min(int((x0 + x1) / 2), frame.width - 1))
    laid = np.nan_to_num(frame.unwarp(positive))
    strongest = np.unravel_index(int(laid.argmax()), laid.shape)
    return Localization(
        auroc=auroc(positive, inside, outside),
        average_precision=average_precision(positive, inside, outside),
        pointing=float(laid.any() and mask[strongest]),
        centre=float(mask[middle]),
        spot=auroc(centre_spot(positive.shape), inside, outside),
        energy=_energy(laid, mask),
        squared_energy=_energy(np.nan_to_num(frame.unwarp(positive**2)), mask),
        area=area,
    )


def auroc_on(values: np.ndarray, frame: Frame, mask: np.ndarray) -> float:
    """Return the AUROC of a map (rows, cols) of whatever origin against a mask (height, width)."""
    return auroc(np.maximum(values, 0.0), *cell_areas(frame, mask, values.shape))


def cell_areas(frame: Frame, mask: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return for each cell of a map how many pixels that the model saw lie inside the mask, and outside."""
    x0, y0, x1, y1 = frame.seen_box
    rows, cols = shape
    down, across = _cell_edges(frame.height, y0, y1, rows), _cell_edges(frame.width, x0, x1, cols)
    seen = frame.seen()
    inside, outside = (_sum_cells(part, down, across) for part in (mask & seen, ~mask & seen))
    return inside, outside


def auroc(values: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> float:
    """Return the chance that a place inside has a higher value than one outside, cells weighted by their
    areas; NaN where there is nothing of one side.
    """
    within, without = _by_value(values, inside, outside)
    if not within.sum() or not without.sum():
        return float("nan")
    below = np.cumsum(without) - without
    return float((within * (below + without / 2)).sum() / (within.sum() * without.sum()))


def average_precision(values: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> float:
    """Return the mean, over the places inside, of the share that lies inside among all places with no lower
    value; NaN where nothing lies inside.
    """
    within, without = (side[::-1] for side in _by_value(values, inside, outside))
    if not within.sum():
        return float("nan")
    precision = np.cumsum(within) / np.maximum(np.cumsum(within) + np.cumsum(without), 1e-12)
    return float((within * precision).sum() / within.sum())


def mean_localization(results: Sequence[Localization]) -> Localization:
    """Return the mean of each figure."""
    names = [field.name for field in fields(Localization)]
    return Localization(*(float(np.mean([getattr(result, name) for result in results])) for name in names))


def _energy(laid: np.ndarray, mask: np.ndarray) -> float:
    total = float(laid.sum())
    return float(laid[mask].sum()) / total if total > 0 else 0.0


def _cell_edges(pixels: int, start: float, stop: float, cells: int) -> np.ndarray:
    """Return the first pixel of each cell, and the number of pixels: a pixel is of the cell in which its
    centre lies, or of the nearest.
    """
    place = np.floor((np.arange(pixels) + 0.5 - start) / (stop - start) * cells)
    return np.searchsorted(np.clip(place, 0, cells - 1), np.arange(cells + 1))


def _sum_cells(mask: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Return how many pixels of a mask each cell has, by the sums over all rectangles from the corner."""
    sums = np.zeros((mask.shape[0] + 1, mask.shape[1] + 1))
    sums[1:, 1:] = mask.cumsum(0, dtype=np.int32).cumsum(1)
    corners = sums[down][:, across]
    areas: np.ndarray = np.diff(np.diff(corners, axis=0), axis=1)
    return areas


def _by_value(values: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the areas inside and outside for each value that occurs, lowest first."""
    levels, place = np.unique(values.ravel(), return_inverse=True)
    within, without = (
        np.bincount(place, weights=side.ravel(), minlength=len(levels)) for side in (inside, outside)
    )
    return within, without
