"""An explanation is a frozen value that says what it explains, how it was made, and whether there was
anything to explain.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import numpy as np

from models.attribution.targets import Target

AttributionStatus = Literal["ok", "no_positive_evidence", "no_gradient", "not_finite"]
Unit = Literal["logit", "score"]
GridKind = Literal["block", "input"]

STATUS_MEANINGS: dict[AttributionStatus, str] = {
    "ok": "The map has evidence for the class.",
    "no_positive_evidence": "No part of the picture speaks for this class here; the map is empty on purpose.",
    "no_gradient": "The class score does not react to this block at all; there is nothing to show.",
    "not_finite": "The map came out with values that are not finite numbers and was dropped.",
}

INPUT_BLOCK = "input"
"""In place of a block, where a method explains the pixels themselves."""


class FrozenSettings(dict[str, object]):
    """Settings that decided a result, by name; read-only."""

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError("The settings of a result cannot be changed.")

    __setitem__ = __delitem__ = update = pop = popitem = clear = setdefault = __ior__ = _refuse

    def __reduce__(self) -> tuple[type[FrozenSettings], tuple[dict[str, object]]]:
        return FrozenSettings, (dict(self),)


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Evidence for one target, on the grid of a block or of the input."""

    target: Target
    method: str
    block: str
    """The block whose output was read, or "input"."""
    status: AttributionStatus
    values: np.ndarray = field(repr=False)
    """Signed map, float32 (rows, cols), not to be written to; all zero unless status is ok or
    no_positive_evidence. Above 0 speaks for the target, below 0 against it."""
    unit: Unit = "logit"
    """What the values are shares or changes of."""
    settings: FrozenSettings = field(default_factory=FrozenSettings)
    """Everything else that decided the values: steps, seeds, baselines, smoothing, engine."""
    grid: GridKind = "block"
    """Whether the cells are the block's, or stand for pixels of the input."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Attribution) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[object, ...]:
        values = (self.values.shape, self.values.tobytes())
        return (self.target, self.method, self.block, self.status, self.unit, self.grid, values,
                tuple(sorted(self.settings.items())))  # fmt: skip

    @property
    def label(self) -> str:
        """Name of the class explained."""
        return self.target.label

    @property
    def index(self) -> int:
        """Index of the class explained."""
        return self.target.index

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
        """Highest raw value."""
        return float(self.values.max())

    @property
    def full_scale(self) -> float:
        """What full colour stands for in an overlay of its own: the highest value, or in a map of pixels,
        where one odd cell would leave the rest unseen, what 98 % of the positive values stay below.
        """
        if self.grid == "block":
            return self.maximum
        above = self.values[self.values > 0]
        return float(np.quantile(above, 0.98)) if above.size else self.maximum

    def positive(self, full_scale: float | None = None) -> np.ndarray:
        """Return the positive part scaled to [0, 1] by its own full scale or by ``full_scale``; all zero when
        there is none.
        """
        positive = np.maximum(self.values, 0.0)
        top = self.full_scale if full_scale is None else full_scale
        scaled: np.ndarray = np.minimum(positive / top, 1.0) if top > 0.0 else positive
        return scaled


def make_attribution(
    target: Target,
    values: np.ndarray,
    *,
    method: str,
    block: str,
    unit: Unit = "logit",
    settings: Mapping[str, object] | None = None,
    grid: GridKind = "block",
) -> Attribution:
    """Return an Attribution of a raw signed map (rows, cols), with its status."""
    status, finite_values = classify_map(values.astype(np.float32))
    finite_values.setflags(write=False)
    return Attribution(
        target, method, block, status, finite_values, unit, FrozenSettings(settings or {}), grid
    )


def classify_map(values: np.ndarray) -> tuple[AttributionStatus, np.ndarray]:
    """Return status of a raw signed map, and the map that may be shown: never NaN, never a blank one without
    a word.
    """
    if not np.isfinite(values).all():
        return "not_finite", np.zeros_like(values)
    if not values.any():
        return "no_gradient", values
    return ("ok" if values.max() > 0.0 else "no_positive_evidence"), values


def shared_scale(attributions: list[Attribution]) -> float | None:
    """Return one full scale for several maps of a kind, so that a faint one looks faint; None when none of
    them has positive evidence.
    """
    top = max((item.full_scale for item in attributions), default=0.0)
    return top if top > 0.0 else None
