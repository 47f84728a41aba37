"""A search for windows that many pictures of one class share and others do not, wherever the map lies.

Every window of some pictures of a class is held against the same window of all others, moved by a few pixels,
by the normalised correlation of the fine structure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import torch
from torch.nn import functional as F

_STRIDE, _SHIFT = 10, 4
_WINDOW = 2 * _STRIDE
"""Pixels of the small copies."""
_TEMPLATES, _MOST_OWN, _MOST_OTHERS = 12, 64, 32
_ALIKE = 0.6
_FEWEST, _LEAST_EXCESS = 4, 0.08
_MOST_WINDOWS = 2


@dataclass(frozen=True)
class SharedWindow:
    """A window of the small copies and the pictures that have the same there."""

    members: tuple[int, ...]
    """Their places among the class's pictures."""
    top: int
    left: int
    side: int = field(default=_WINDOW)


def find_shared_windows(own: np.ndarray, others: np.ndarray, *, seed: int = 0) -> list[SharedWindow]:
    """Return the windows, at most two apart from each other, that most of a class's pictures (N, S, S) share
    and few of the others (M, S, S).
    """
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.choice(len(own), min(_MOST_OWN, len(own)), replace=False))
    beside = others[np.sort(rng.choice(len(others), min(_MOST_OTHERS, len(others)), replace=False))]
    if len(chosen) <= _FEWEST or not len(beside):
        return []
    templates = rng.permutation(len(chosen))[:_TEMPLATES].tolist()
    alike_ones = _Windows(np.concatenate([own[chosen], beside])).correlations(templates) >= _ALIKE
    ranked = []
    for template, alike in zip(templates, alike_ones, strict=True):
        mine, theirs = alike[: len(chosen)].clone(), alike[len(chosen) :]
        mine[template] = False
        excess = mine.float().mean(dim=0) - theirs.float().mean(dim=0)
        excess[mine.sum(dim=0) < _FEWEST] = 0
        row, col = divmod(int(excess.argmax()), excess.shape[1])
        members = (template, *torch.nonzero(mine[:, row, col])[:, 0].tolist())
        ranked.append((float(excess[row, col]), row, col, members))
    windows: list[SharedWindow] = []
    for excess_here, row, col, members in sorted(ranked, key=lambda item: -item[0]):
        apart = all(abs(row * _STRIDE - w.top) + abs(col * _STRIDE - w.left) > _WINDOW for w in windows)
        if excess_here >= _LEAST_EXCESS and apart and len(windows) < _MOST_WINDOWS:
            places = tuple(int(chosen[n]) for n in members)
            windows.append(SharedWindow(places, row * _STRIDE, col * _STRIDE))
    return windows


class _Windows:
    """Pictures (N, S, S) whose windows are compared with those of one of them."""

    def __init__(self, images: np.ndarray) -> None:
        self._images = torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32))[:, None]
        self._padded = F.pad(self._images, (_SHIFT,) * 4)
        self._mean, self._deviation = self._moments(self._images)

    def correlations(self, templates: Sequence[int]) -> torch.Tensor:
        """Return (templates, N, rows, cols): the best correlation of each picture's windows with each
        template's.
        """
        side = self._images.shape[2]
        best = torch.full((len(templates), *self._mean.shape), -1.0)
        for down, across in product(range(2 * _SHIFT + 1), repeat=2):
            moved = self._padded[:, :, down : down + side, across : across + side].contiguous()
            moved_mean, moved_deviation = self._moments(moved)
            for number, template in enumerate(templates):
                covariance = _pool(moved * self._images[template]) - moved_mean * self._mean[template]
                correlation = covariance / (moved_deviation * self._deviation[template])
                torch.maximum(best[number], correlation, out=best[number])
        return best[:, :, 0]

    @staticmethod
    def _moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mean = _pool(images)
        # A window without structure is like no other.
        return mean, (_pool(images**2) - mean**2).clamp(min=4.0).sqrt()


def _pool(images: torch.Tensor) -> torch.Tensor:
    # A window is four squares of a stride each, which its neighbours share with it.
    return F.avg_pool2d(F.avg_pool2d(images, _STRIDE), 2, 1)
