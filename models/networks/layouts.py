"""How a block's output is read as a map (N, channels, rows, cols), and put back as what the next block takes.

Convolutional networks pass maps. Swin passes channels last, a vision transformer passes tokens; read as if
they were maps, both give explanations of the wrong shape without a word.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Layout:
    """Two ways between a block's value and its map; autograd passes through both."""

    name: str
    to_map: Callable[[Tensor], Tensor]
    """Value to map (N, channels, rows, cols)."""
    from_map: Callable[[Tensor, Tensor], Tensor]
    """(map, the value it was read from) to a value: what the map does not hold, such as a class token, is the
    value's own."""


def _tokens_to_map(value: Tensor) -> Tensor:
    """Map (N, 1 + rows * cols, channels), the class token first, to a square map."""
    patches = value[:, 1:]
    side = math.isqrt(patches.shape[1])
    return patches.transpose(1, 2).reshape(len(value), value.shape[2], side, side)


def _tokens_from_map(grid: Tensor, value: Tensor) -> Tensor:
    return torch.cat([value[:, :1], grid.flatten(2).transpose(1, 2)], dim=1)


MAPS = Layout("maps", lambda value: value, lambda grid, _: grid)
CHANNELS_LAST = Layout(
    "channels last", lambda value: value.permute(0, 3, 1, 2), lambda grid, _: grid.permute(0, 2, 3, 1)
)
TOKENS = Layout("tokens", _tokens_to_map, _tokens_from_map)
