"""An explanation is a frozen value that says what it explains and whether there was anything to explain."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Status = Literal["ok", "no_positive_evidence", "no_gradient", "not_finite"]

MEANINGS: dict[Status, str] = {
    "ok": "The map has evidence for the class.",
    "no_positive_evidence": "No part of the picture speaks for this class here; the map is empty on purpose.",
    "no_gradient": "The class score does not react to this block at all; there is nothing to show.",
    "not_finite": "The map came out with values that are not finite numbers and was dropped.",
}


@dataclass(frozen=True, slots=True)
class Attribution:
    """Evidence for one class at one block, on the block's own grid."""

    label: str
    index: int
    method: str
    block: str
    status: Status
    values: np.ndarray = field(repr=False)
    """Signed map, float32 (rows, cols), in units of the class's logit; all zero unless status is ok or
    no_positive_evidence. Above 0 speaks for the class, below 0 against it."""

    @property
    def rows(self) -> int:
        """Height of the grid in cells."""
        return int(self.values.shape[0])

    @property
    def cols(self) -> int:
        """Width of the grid in cells."""
        return int(self.values.shape[1])

    @property
    def minimum(self) -> float:
        """Lowest raw value."""
        return float(self.values.min())

    @property
    def maximum(self) -> float:
        """Highest raw value; what full colour stands for in an overlay."""
        return float(self.values.max())

    def positive(self, full_scale: float | None = None) -> np.ndarray:
        """The positive part scaled to [0, 1] by its own maximum or by ``full_scale``; all zero when there
        is none.
        """
        positive = np.maximum(self.values, 0.0)
        top = float(positive.max()) if full_scale is None else full_scale
        scaled: np.ndarray = np.minimum(positive / top, 1.0) if top > 0.0 else positive
        return scaled


def classify(values: np.ndarray) -> tuple[Status, np.ndarray]:
    """Status of a raw signed map, and the map that may be shown: never NaN, never a blank one without a
    word.
    """
    if not np.isfinite(values).all():
        return "not_finite", np.zeros_like(values)
    if not values.any():
        return "no_gradient", values
    return ("ok" if values.max() > 0.0 else "no_positive_evidence"), values
