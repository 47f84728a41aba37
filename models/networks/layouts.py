"""How a block's output is read as a map (N, channels, rows, cols), and put back as what the next block takes.

Convolutional networks pass maps, Swin passes channels last, vision transformers pass tokens with or without
some in front that belong to no place. Read in the wrong way, each gives explanations of the wrong shape
without a word.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from models.errors import ExplanationError

LayoutName = Literal["maps", "channels last", "tokens", "none"]


@dataclass(frozen=True, slots=True)
class Layout:
    """Two ways between a block's value and its map; autograd passes through both."""

    name: LayoutName
    prefix: int = 0
    """Tokens in front that belong to no place: of the class, of distillation, registers."""
    rows: int = 0
    """Of the tokens, at the size of input that the network was made for."""
    cols: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no layout: a bundle's file may hold anything."""
        sizes = (self.prefix, self.rows, self.cols)
        whole = all(isinstance(size, int) and 0 <= size < 100_000 for size in sizes)
        if self.name not in get_args(LayoutName) or not whole or (self.name == "tokens") != (sizes[1] > 0):
            raise ValueError(f"no layout: {self.name!r} with {sizes}")

    def to_map(self, value: Tensor) -> Tensor:
        """Return a block's value as (N, channels, rows, cols); as it is where it has no such layout."""
        if self.name == "channels last" and value.ndim == 4:
            return value.permute(0, 3, 1, 2)
        if self.name == "tokens" and value.ndim == 3:
            rows, cols = self._grid(value.shape[1] - self.prefix)
            places = value[:, self.prefix :].transpose(1, 2)
            return places.reshape(len(value), value.shape[2], rows, cols)
        return value

    def from_map(self, grid: Tensor, value: Tensor) -> Tensor:
        """Return a map as a block's value; what the map does not hold, such as a class token, is that of
        ``value``, which it was read from.
        """
        if self.name == "channels last":
            return grid.permute(0, 2, 3, 1)
        if self.name == "tokens":
            return torch.cat([value[:, : self.prefix], grid.flatten(2).transpose(1, 2)], dim=1)
        return grid

    def _grid(self, places: int) -> tuple[int, int]:
        """Return (rows, cols) of so many tokens, in the shape of the network's own grid; raises
        ExplanationError for a number that has none, which would be read as a wrong one.
        """
        rows = round(math.sqrt(places * self.rows / self.cols))
        cols = round(math.sqrt(places * self.cols / self.rows))
        if rows * cols != places:
            raise ExplanationError(
                f"{places} tokens are no grid in the shape of the network's own, {self.rows} x {self.cols}; "
                "explain pictures of the size that it was made for."
            )
        return rows, cols


MAPS = Layout("maps")
CHANNELS_LAST = Layout("channels last")
NO_MAP = Layout("none")
