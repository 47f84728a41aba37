"""Maps of pixels gathered into cells that a person can read."""

from __future__ import annotations

import torch
from torch import Tensor


def average_cells(maps: Tensor, side: int, *, adds_up: bool) -> Tensor:
    """Maps (N, H, W) of pixels as cells of about ``side`` pixels: their sums, whose total stays the same, or
    their means.
    """
    height, width = maps.shape[1:]
    down, across = (
        _overlap_matrix(height, max(1, round(height / side))),
        _overlap_matrix(width, max(1, round(width / side))),
    )
    sums = down @ maps @ across.T
    return sums if adds_up else sums / torch.outer(down.sum(1), across.sum(1))


def _overlap_matrix(pixels: int, cells: int) -> Tensor:
    """(cells, pixels): how much of each pixel lies in each cell of an even division."""
    edges = torch.linspace(0, pixels, cells + 1)
    left = torch.arange(pixels)
    return (torch.minimum(edges[1:, None], left + 1) - torch.maximum(edges[:-1, None], left)).clamp(0, 1)
