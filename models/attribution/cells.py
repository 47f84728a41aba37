"""Maps of pixels gathered into cells that a person can read."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_cells(maps: Tensor, side: int) -> Tensor:
    """Sum maps (N, H, W) of pixels over cells of about ``side`` pixels; the total of a map stays the same."""
    down, across = _cell_weights(maps, side)
    return down @ maps @ across.T


def average_cells(maps: Tensor, side: int) -> Tensor:
    """Average maps (N, H, W) of pixels over cells of about ``side`` pixels."""
    down, across = _cell_weights(maps, side)
    return down @ maps @ across.T / torch.outer(down.sum(1), across.sum(1))


def _cell_weights(maps: Tensor, side: int) -> tuple[Tensor, Tensor]:
    height, width = maps.shape[1:]
    return (
        _overlap_matrix(height, max(1, round(height / side))),
        _overlap_matrix(width, max(1, round(width / side))),
    )


def _overlap_matrix(pixels: int, cells: int) -> Tensor:
    """Return how much of each pixel lies in each cell of an even division, (cells, pixels)."""
    edges = torch.linspace(0, pixels, cells + 1)
    left = torch.arange(pixels)
    return (torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)).clamp(0, 1)
