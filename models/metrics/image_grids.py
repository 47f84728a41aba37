"""Mosaics of pictures of different classes, in which the place of each class is known to the pixel.

The grid pointing game (Böhle et al. 2021; Rao et al. 2022): the model sees several pictures as one, and the
map of a class should lie in the cell of the picture of that class. No mask has to be drawn, and a map that
knows nothing of the class is at chance, for every cell is as likely as the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.attribution.forward import predict_logits
from models.backends.base import Backend
from models.errors import ExplanationError
from models.images.frame import Frame


@dataclass(frozen=True, slots=True)
class ImageGrid:
    """A mosaic of side x side pictures as one input of a model."""

    x: Tensor
    """(3, H, W)"""
    side: int
    classes: tuple[int, ...]
    """The class of each cell, row by row: what the model says of that picture alone."""

    @property
    def frame(self) -> Frame:
        """The input as its own image."""
        height, width = self.x.shape[1:]
        return Frame(width, height, width, height, 0, 0, width, height)

    def mask(self, cell: int) -> np.ndarray:
        """Return the pixels of a cell, boolean (H, W)."""
        row, col = divmod(cell, self.side)
        down, across = (
            np.linspace(0, length, self.side + 1).round().astype(int) for length in self.x.shape[1:]
        )
        mask = np.zeros(tuple(self.x.shape[1:]), dtype=bool)
        mask[down[row] : down[row + 1], across[col] : across[col + 1]] = True
        return mask


def build_grids(
    backend: Backend, images: Sequence[Tensor], *, side: int, count: int, seed: int = 0
) -> list[ImageGrid]:
    """Return so many mosaics of images (3, H, W), each of as many different classes as it has cells, those
    that the model is surest of first.

    The pictures keep their size where the network takes larger inputs, and are made smaller elsewhere. Fewer
    are returned, or none, where the images are of too few classes.
    """
    by_class = _surest_by_class(backend, images)
    cells = side * side
    if len(by_class) < cells:
        return []
    shrink = not _takes_larger(backend, images[0], side)
    rng = np.random.default_rng(seed)
    grids = []
    for turn in range(count):
        chosen = [int(item) for item in rng.permutation(sorted(by_class))[:cells]]
        parts = [images[by_class[label][turn % len(by_class[label])]] for label in chosen]
        grids.append(ImageGrid(_tile(parts, side, shrink=shrink), side, tuple(chosen)))
    return grids


def _surest_by_class(backend: Backend, images: Sequence[Tensor]) -> dict[int, list[int]]:
    """Return the images' numbers by predicted class, the surest of each first."""
    scores = torch.cat(
        [
            backend.model.scoring.scores(predict_logits(backend, part))
            for part in torch.split(torch.stack(list(images)), 16)
        ]
    )
    best, predicted = scores.max(1)
    by_class: dict[int, list[int]] = {}
    for number in best.argsort(descending=True).tolist():
        by_class.setdefault(int(predicted[number]), []).append(number)
    return by_class


def _takes_larger(backend: Backend, image: Tensor, side: int) -> bool:
    try:
        predict_logits(backend, image.repeat(1, side, side)[None])
    except (ExplanationError, RuntimeError, AssertionError):
        return False
    return True


def _tile(parts: Sequence[Tensor], side: int, *, shrink: bool) -> Tensor:
    """Return the mosaic, in the size of one picture where it is to shrink."""
    size = parts[0].shape[1:]
    rows = [torch.cat(list(parts[start : start + side]), dim=2) for start in range(0, len(parts), side)]
    whole = torch.cat(rows, dim=1)
    if not shrink:
        return whole
    return F.interpolate(whole[None], size=tuple(size), mode="bilinear", antialias=True)[0]
