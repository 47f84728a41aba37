"""The parameters of the methods: one frozen class for each, settable by name over REST, CLI and Python."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from models.errors import ConfigError, UnknownChoice


@dataclass(frozen=True, slots=True)
class Parameters:
    """Parameters of a method that has none; base class of all others.

    Every field of a subclass is a whole number with a default, and has its range in ``RANGES``.
    """

    RANGES: ClassVar[dict[str, tuple[int, int]]] = {}
    QUICK: ClassVar[dict[str, int]] = {}
    """Values that are enough to compare maps with each other."""

    def __post_init__(self) -> None:
        """Raise ConfigError for a value that is no whole number or out of range."""
        for name, (low, high) in self.RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high:
                raise ConfigError(f"{name} is {value!r}; it must be a whole number from {low} to {high}.")

    @classmethod
    def from_names(cls, values: Mapping[str, Any], *, quick: bool = False) -> Self:
        """Build from values by name, over the defaults or the quick values; texts are read as numbers.

        Raises UnknownChoice for a name that the method does not have, ConfigError for a value out of range.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                raise UnknownChoice("parameter", name, names or ["this method has none"])
        return cls(
            **{**(cls.QUICK if quick else {}), **{name: _number(value) for name, value in values.items()}}
        )


@dataclass(frozen=True, slots=True)
class GuidedGradCamParameters(Parameters):
    """Parameters of Guided Grad-CAM."""

    RANGES: ClassVar[dict[str, tuple[int, int]]] = {"cell": (1, 256)}

    cell: int = 8
    """Side of a cell of the map in input pixels; single pixels are more than a person can read."""


@dataclass(frozen=True, slots=True)
class IntegratedGradientsParameters(Parameters):
    """Parameters of integrated gradients."""

    RANGES: ClassVar[dict[str, tuple[int, int]]] = {
        "steps": (1, 1000), "most_steps": (1, 10_000), "cell": (1, 256),
    }  # fmt: skip
    QUICK: ClassVar[dict[str, int]] = {"steps": 16, "most_steps": 48}

    steps: int = 32
    """Steps that the integral begins with, each one forward and one backward."""
    most_steps: int = 256
    """Steps that it may grow to, until the shares add up to the rise to within 5 %."""
    cell: int = 8
    """Side of a cell of the map in input pixels."""


@dataclass(frozen=True, slots=True)
class OcclusionParameters(Parameters):
    """Parameters of occlusion."""

    RANGES: ClassVar[dict[str, tuple[int, int]]] = {
        "window": (1, 4096),
        "stride": (1, 4096),
        "cell": (1, 256),
    }
    QUICK: ClassVar[dict[str, int]] = {"window": 56, "stride": 28}

    window: int = 48
    """Side of the covered square, input pixels."""
    stride: int = 24
    """Distance from window to window, input pixels."""
    cell: int = 8
    """Side of a cell of the map in input pixels."""


@dataclass(frozen=True, slots=True)
class PatchOcclusionParameters(Parameters):
    """Parameters of patch occlusion."""

    RANGES: ClassVar[dict[str, tuple[int, int]]] = {"patches": (2, 64), "cell": (1, 256)}

    patches: int = 6
    """Patches along the shorter side, each one forward."""
    cell: int = 8
    """Side of a cell of the map in input pixels."""


@dataclass(frozen=True, slots=True)
class RiseParameters(Parameters):
    """Parameters of RISE."""

    RANGES: ClassVar[dict[str, tuple[int, int]]] = {
        "masks": (1, 100_000), "cells": (1, 256), "seed": (0, 2**31), "cell": (1, 256),
    }  # fmt: skip
    QUICK: ClassVar[dict[str, int]] = {"masks": 96}

    masks: int = 400
    """Random masks, each one forward."""
    cells: int = 7
    """Cells of a mask along the shorter side, before it is smoothed."""
    seed: int = 0
    cell: int = 8
    """Side of a cell of the map in input pixels."""


def _number(value: object) -> object:
    """Read a text as a whole number where it is one; anything else is left for the range check to refuse."""
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and len(value) < 12:
        return int(value)
    return value
