"""What a method measures while it makes its maps, for those who are shown them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

MEASURED = ("rise", "residual", "negative_activation")
"""Names of what is measured of one map, and holds of no average of several."""


@dataclass(frozen=True, slots=True)
class MeasuredMaps:
    """Maps with a few figures about each."""

    maps: Tensor
    """(N, rows, cols)"""
    facts: Sequence[Mapping[str, float]]
    """Of each map, by name."""


def maps_of(found: Tensor | MeasuredMaps) -> Tensor:
    """Return the maps alone."""
    return found.maps if isinstance(found, MeasuredMaps) else found


def facts_of(found: Tensor | MeasuredMaps, n: int) -> Mapping[str, float]:
    """Return what was measured of the n-th map."""
    return found.facts[n] if isinstance(found, MeasuredMaps) else {}
