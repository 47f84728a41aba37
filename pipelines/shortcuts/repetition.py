"""Parts that repeat: the same pixels at the same place of several pictures, as those of a stamp, a label or a
frame do, and as those of living things do not.

All is measured on small grey copies without their slow changes of light, each pair of pictures at its best
shift of some pixels, by the normalised correlation (Lewis 1995).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import torch
from torch.nn import functional as F

from pipelines.shortcuts.evidence import SeenImage
from pipelines.shortcuts.repeated_windows import find_shared_windows

_SIDE = 112
_SHIFT, _FAR = 6, 18
"""Pixels of the small copies by which two pictures may be out of place: while it is looked whether anything
repeats, and once it is known what; crops and shapes move a mark.
"""
_PAIRS = 40
_MARGIN, _WIDER, _ROUNDS, _CLOSED = 2, 8, 4, 4
_CONSISTENT = 0.4
"""Share of the energy of the structure that is common to the pictures, from which on a pixel repeats."""
_LEAST, _ABOVE_OTHERS = 0.4, 0.15
"""Correlation from which on a picture has a part, and how far above the usual one by chance."""

Box = tuple[int, int, int, int]
"""top, bottom, left, right in the small copies."""


@dataclass(frozen=True)
class Repeated:
    """A part that repeats, and the pictures that have it."""

    correlation: float
    """Mean over pairs of the pictures that have it."""
    by_chance: float
    """Median over pictures of other classes, at the same place."""
    masks: dict[str, np.ndarray] = field(repr=False)
    """By the name of each picture that has it, of any class: where, boolean (H, W)."""


class StructureIndex:
    """The fine structure of all pictures of a search."""

    def __init__(self, images: Sequence[SeenImage]) -> None:
        self.images = images
        self._fine = {image.name: _structure(image.pixels) for image in images}

    def shared_windows(self, label: int, *, seed: int = 0) -> list[tuple[list[str], np.ndarray]]:
        """Return (names, mask) of windows that pictures of a class share, wherever the map lies."""
        own = [image for image in self.images if image.label == label]
        others = [image for image in self.images if image.label != label]
        if not own or not others:
            return []
        stacks = [np.stack([self._fine[image.name] for image in group]) for group in (own, others)]
        windows = []
        for window in find_shared_windows(*stacks, seed=seed):
            inner = np.ones((window.side, window.side), dtype=bool)
            box = (window.top, window.top + window.side, window.left, window.left + window.side)
            mask = _placed(inner, box, (0, 0), own[0].pixels.shape[:2])
            windows.append(([own[n].name for n in window.members], mask))
        return windows

    def correlation(self, names: Sequence[str], mask: np.ndarray, *, seed: int = 0) -> float:
        """Return the mean correlation of what lies under a mask (H, W), over pairs of these pictures."""
        pairs = [(one, other) for n, one in enumerate(names) for other in names[n + 1 :]]
        if not pairs:
            return 0.0
        chosen = np.random.default_rng(seed).choice(len(pairs), min(_PAIRS, len(pairs)), replace=False)
        box = _box(mask, _MARGIN)
        others: dict[str, list[str]] = defaultdict(list)
        for n in chosen:
            others[pairs[n][0]].append(pairs[n][1])
        values = [value for one, group in others.items() for value, _ in self._matches(one, group, box)]
        return float(np.mean(values))

    def find(self, names: Sequence[str], mask: np.ndarray, label: int) -> Repeated | None:
        """Return the part that pictures of a class repeat under a mask, with all pictures that have it; None
        where they repeat nothing.
        """
        box = _box(mask, _MARGIN)
        typical = max(names, key=lambda one: self._mean_match(one, names, box))
        # A mark may reach beyond the window that it was noticed in; the whole of it is the best template.
        inner = None
        for _ in range(_ROUNDS):
            before = box
            box, inner = self._narrow(typical, names, box)
            if inner is None:
                return None
            if box == before:
                break
        assert inner is not None
        matches, chance = self._present(typical, names, box, label)
        shape = self.images[0].pixels.shape[:2]
        masks = {name: _placed(inner, box, shift, shape) for name, (_, shift) in matches.items()}
        own = [image.name for image in self.images if image.name in masks and image.label == label]
        pairs = [matches[name][0] for name in own if name != typical]
        return Repeated(float(np.mean(pairs)) if pairs else 0.0, chance, masks)

    def _present(
        self, typical: str, names: Sequence[str], box: Box, label: int
    ) -> tuple[dict[str, tuple[float, tuple[int, int]]], float]:
        """Return the matches of the pictures that have what is in a box, by name, and the usual correlation
        of pictures of other classes.

        A crop may move a mark far; the farther one looks, the more must it be alike.
        """
        everyone = [image.name for image in self.images]
        present: dict[str, tuple[float, tuple[int, int]]] = {}
        by_chance = []
        for reach, above in ((_SHIFT, _ABOVE_OTHERS), (_FAR, 2 * _ABOVE_OTHERS)):
            matches = dict(zip(everyone, self._matches(typical, everyone, box, reach=reach), strict=True))
            others = [matches[image.name][0] for image in self.images if image.label != label]
            by_chance.append(float(np.median(others or [0.0])))
            usual = float(np.median([matches[name][0] for name in names]))
            edge = max(_LEAST, by_chance[-1] + above, (by_chance[-1] + usual) / 2)
            present = {name: match for name, match in matches.items() if match[0] >= edge} | present
        return present, by_chance[0]

    def _narrow(self, typical: str, names: Sequence[str], box: Box) -> tuple[Box, np.ndarray | None]:
        """Return the box of what repeats, and its mask there; None where nothing does."""
        from scipy import ndimage

        matches = self._matches(typical, names, box)
        shifts = [shift for value, shift in matches if value >= _LEAST]
        wide = _widened(box, _WIDER)
        stack = [
            _cut(self._fine[name], wide, shift)
            for name, (value, shift) in zip(names, matches, strict=True)
            if value >= _LEAST
        ]
        if len(shifts) < 3:
            return box, None
        aligned = np.stack(stack)
        common = ndimage.gaussian_filter(aligned.mean(axis=0) ** 2, 1.5)
        energy = ndimage.gaussian_filter((aligned**2).mean(axis=0), 1.5)
        repeats = (common / (energy + 1e-6) > _CONSISTENT) & (energy > np.median(energy) * 0.5)
        numbered, count = ndimage.label(
            ndimage.binary_closing(np.pad(repeats, _CLOSED), iterations=_CLOSED)[
                _CLOSED:-_CLOSED, _CLOSED:-_CLOSED
            ]
        )
        if not count:
            return box, None
        largest = 1 + int(np.argmax(ndimage.sum(repeats, numbered, range(1, count + 1))))
        rows, cols = (np.flatnonzero((numbered == largest).any(axis=axis)) for axis in (1, 0))
        narrow = (wide[0] + rows[0], wide[0] + rows[-1] + 1, wide[2] + cols[0], wide[2] + cols[-1] + 1)
        # The whole rectangle: between the strokes of a mark there is mark, too.
        return narrow, np.ones((len(range(*narrow[:2])), len(range(*narrow[2:]))), dtype=bool)

    def _mean_match(self, one: str, names: Sequence[str], box: Box) -> float:
        return float(np.mean([value for value, _ in self._matches(one, names, box)]))

    def _matches(
        self, one: str, names: Sequence[str], box: Box, *, reach: int = _SHIFT
    ) -> list[tuple[float, tuple[int, int]]]:
        """Return for each of these pictures the best correlation with a picture's box, and the shift (down,
        across) at which it is; at most ``reach`` pixels.
        """
        top, bottom, left, right = box
        fixed = torch.from_numpy(_standard(self._fine[one][top:bottom, left:right]))
        # Beyond the edges there is nothing: a mark that the view cuts off is found by what is left of it.
        rows, cols = slice(top, bottom + 2 * reach), slice(left, right + 2 * reach)
        around = torch.from_numpy(np.stack([np.pad(self._fine[name], reach)[rows, cols] for name in names]))
        around = around[:, None]
        size = tuple(fixed.shape)
        covariance = F.conv2d(around, fixed[None, None]) / fixed.numel()
        mean = F.avg_pool2d(around, size, 1)
        variance = (F.avg_pool2d(around**2, size, 1) - mean**2).clamp(min=1e-3)
        values = (covariance / variance.sqrt())[:, 0]
        best, places = values.flatten(1).max(dim=1)
        width = values.shape[2]
        return [
            (float(value), (place // width - reach, place % width - reach))
            for value, place in zip(best.tolist(), places.tolist(), strict=True)
        ]


def _structure(pixels: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    grey = PIL.Image.fromarray(pixels).convert("L").resize((_SIDE, _SIDE), PIL.Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.float32)
    fine: np.ndarray = values - ndimage.gaussian_filter(values, 6)
    return fine


def _box(mask: np.ndarray, margin: int) -> Box:
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    down, across = _SIDE / mask.shape[0], _SIDE / mask.shape[1]
    inner = (
        int(rows[0] * down), int(np.ceil((rows[-1] + 1) * down)),
        int(cols[0] * across), int(np.ceil((cols[-1] + 1) * across)),
    )  # fmt: skip
    return _widened(inner, margin)


def _widened(box: Box, margin: int) -> Box:
    top, bottom, left, right = box
    return (
        max(0, top - margin),
        min(_SIDE, bottom + margin),
        max(0, left - margin),
        min(_SIDE, right + margin),
    )


def _cut(fine: np.ndarray, box: Box, shift: tuple[int, int]) -> np.ndarray:
    """Return a box of a picture, moved; zeros where that reaches beyond the picture."""
    padded = np.pad(fine, _SHIFT)
    top, bottom, left, right = box
    down, across = shift[0] + _SHIFT, shift[1] + _SHIFT
    return padded[top + down : bottom + down, left + across : right + across]


def _placed(inner: np.ndarray, box: Box, shift: tuple[int, int], shape: tuple[int, ...]) -> np.ndarray:
    """Return a mask of a box, moved, in the size of the model's input."""
    small = np.zeros((_SIDE, _SIDE), dtype=np.uint8)
    rows, cols = np.nonzero(inner)
    rows, cols = rows + box[0] + shift[0], cols + box[2] + shift[1]
    inside = (rows >= 0) & (rows < _SIDE) & (cols >= 0) & (cols < _SIDE)
    small[rows[inside], cols[inside]] = 255
    enlarged = PIL.Image.fromarray(small).resize((shape[1], shape[0]), PIL.Image.Resampling.NEAREST)
    return np.asarray(enlarged) > 127


def _standard(values: np.ndarray) -> np.ndarray:
    return np.asarray((values - values.mean()) / max(float(values.std()), 1e-3), dtype=np.float32)
