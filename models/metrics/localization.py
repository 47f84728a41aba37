"""Whether a map lies on the object, where a mask or a box says where that is.

Pointing alone flatters: in a data set of centred objects "always the centre" hits most of them. So each
figure has what chance would give beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.attribution.result import Attribution
from models.images.frame import Frame


@dataclass(frozen=True, slots=True)
class Localization:
    """Localization of one map and mask, or the mean over many."""

    energy: float
    """Share of the positive evidence inside the mask (Wang et al. 2020), 0 to 1."""
    area: float
    """Share of what the model saw that is inside the mask: the energy of an even map."""
    pointing: float
    """Whether the strongest place lies inside (Zhang et al. 2018): 1 or 0."""
    centre: float
    """Whether the middle of what the model saw does."""


def localize(attribution: Attribution, frame: Frame, mask: np.ndarray) -> Localization | None:
    """Hold a map against a boolean mask (height, width) of the upright image; None when the model saw
    nothing of the object, or all of it everywhere.

    Raises ValueError for a mask of another size.
    """
    if mask.shape != (frame.height, frame.width):
        raise ValueError(f"The mask is {mask.shape}, the picture {(frame.height, frame.width)}.")
    seen = frame.seen()
    area = float(mask[seen].mean())
    if not 0.0 < area < 1.0:
        return None
    laid = np.nan_to_num(frame.unwarp(np.maximum(attribution.values, 0.0)))
    total = float(laid.sum())
    x0, y0, x1, y1 = frame.seen_box
    middle = (min(int((y0 + y1) / 2), frame.height - 1), min(int((x0 + x1) / 2), frame.width - 1))
    strongest = np.unravel_index(int(laid.argmax()), laid.shape)
    return Localization(
        energy=float(laid[mask].sum()) / total if total > 0 else 0.0,
        area=area,
        pointing=float(total > 0 and mask[strongest]),
        centre=float(mask[middle]),
    )


def mean_localization(results: Sequence[Localization]) -> Localization:
    """Return the mean of each figure."""
    rows = np.array([[result.energy, result.area, result.pointing, result.centre] for result in results])
    energy, area, pointing, centre = rows.mean(axis=0).tolist()
    return Localization(energy, area, pointing, centre)
