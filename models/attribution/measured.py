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


def maps_of(result: Tensor | MeasuredMaps) -> Tensor:
    """Return the maps alone."""
    return result.maps if isinstance(result, MeasuredMaps) else result


def facts_of(result: Tensor | MeasuredMaps, n: int) -> Mapping[str, float]:
    """Return what was measured of the n-th map."""
    return result.facts[n] if isinstance(result, MeasuredMaps) else {}
