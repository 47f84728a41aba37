"""Networks that see the cells of a mosaic one by one, so that it is known where a score comes from.

DiFull and DiPart (Rao et al. 2022): in both the head of a class sees its own cell alone; in DiFull each block
sees one cell at a time as well. Any value that a map has in another cell is then wrong: no matter of taste.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from models.networks.transfer_model import TransferModel


class CellByCell(nn.Module):
    """A block that is run on each cell of a mosaic of side x side alone."""

    def __init__(self, block: nn.Module, side: int) -> None:
        super().__init__()
        self.block, self.side = block, side

    def forward(self, x: Tensor) -> Tensor:
        """Cut (N, C, side * h, side * w) into cells, run the block on each, and put them together again."""
        return join(self.block(cut(x, self.side)), self.side)


class TokensCellByCell(nn.Module):
    """A transformer's block that sees the tokens of one cell of a mosaic at a time; the first one its pixels.

    Tokens (N, rows * cols, C) lie row by row over the whole mosaic, which is a square of squares.
    """

    def __init__(self, block: nn.Module, side: int) -> None:
        super().__init__()
        self.block, self.side = block, side

    def forward(self, x: Tensor) -> Tensor:
        """Cut pixels (N, 3, H, W) or tokens into cells, run the block on each, and join its tokens."""
        x = cut(_as_square(x), self.side).flatten(2).transpose(1, 2) if x.ndim == 3 else cut(x, self.side)
        return join(_as_square(self.block(x)), self.side).flatten(2).transpose(1, 2)


def _as_square(tokens: Tensor) -> Tensor:
    n, count, channels = tokens.shape
    return tokens.transpose(1, 2).reshape(n, channels, round(count**0.5), -1)


class OwnTokens(nn.Module):
    """A head in which each class is scored by the tokens of one cell alone."""

    def __init__(self, pool: nn.Module, head: nn.Module, side: int, cells: dict[int, int]) -> None:
        super().__init__()
        self.pool, self.head, self.side, self.cells = pool, head, side, cells

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        alone = self.head(self.pool(cut(_as_square(x), self.side).flatten(2).transpose(1, 2)))
        alone = alone.reshape(len(x), self.side**2, -1)
        return torch.stack([alone[:, self.cells[label], label] for label in sorted(self.cells)], dim=1)


class OwnCells(nn.Module):
    """A head in which each class is scored by one cell alone; all others by the whole."""

    def __init__(self, pool: nn.Module, head: nn.Module, side: int, cells: dict[int, int]) -> None:
        super().__init__()
        self.pool, self.head, self.side, self.cells = pool, head, side, cells

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, classes)."""
        logits = self.head(self.pool(x))
        each = self.head(self.pool(cut(x, self.side)))
        each = each.reshape(len(x), self.side**2, -1)
        for label, cell in self.cells.items():
            logits = torch.cat([logits[:, :label], each[:, cell, label, None], logits[:, label + 1 :]], dim=1)
        return logits


def cut(x: Tensor, side: int) -> Tensor:
    """Return (N * side², C, h, w), row by row."""
    n, channels, height, width = x.shape
    cells = x.reshape(n, channels, side, height // side, side, width // side)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(n * side**2, channels, height // side, width // side)


def join(cells: Tensor, side: int) -> Tensor:
    """Return what :func:`cut` cut."""
    count, channels, height, width = cells.shape
    laid = cells.reshape(count // side**2, side, side, channels, height, width)
    return laid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, side * height, side * width)


def disconnect(model: TransferModel, side: int, cells: dict[int, int], *, blocks: bool) -> TransferModel:
    """Return a copy for mosaics in which each class of ``cells`` (class to cell) is scored by its cell alone;
    with ``blocks`` these see one cell at a time.
    """
    copied = copy.deepcopy(model).eval()
    if blocks:
        for name in copied.block_names:
            copied.replace_block(name, CellByCell(copied.block(name), side))
    copied.pool, copied.classifier = nn.Identity(), OwnCells(copied.pool, copied.classifier, side, cells)
    return copied


def disconnect_tokens(model: TransferModel, side: int, cells: dict[int, int]) -> TransferModel:
    """Return a copy of a transformer without class token for mosaics, DiFull; ``cells`` names all classes."""
    copied = copy.deepcopy(model).eval()
    for name in copied.block_names:
        copied.replace_block(name, TokensCellByCell(copied.block(name), side))
    copied.pool, copied.classifier = nn.Identity(), OwnTokens(copied.pool, copied.classifier, side, cells)
    return copied
