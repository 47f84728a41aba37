"""How far prediction and map move when the image moves by a few pixels.

The crop is moved on the resized image, so that real pixels come in where there are any; each map is carried
back through its own Frame and compared on the image itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.attribution.forward import run_forward
from models.attribution.registry import DEFAULT_METHOD, attribute_each
from models.attribution.result import Attribution
from models.attribution.targets import Target
from models.backends.base import Backend
from models.images.decode import Image
from models.images.frame import Frame
from models.networks.predictions import rank_classes

_COMPARE_SIDE = 96
_STABLE_CORRELATION = 0.9
_STABLE_SPREAD = 0.1


@dataclass(frozen=True, slots=True)
class ShiftResult:
    """Prediction and map after one shift."""

    right: int
    down: int
    """Of the crop, in pixels of the model's input."""
    score: float
    """Of the target."""
    same_answer: bool
    correlation: float
    """Of the map, carried back, with the one before; over what both saw."""


@dataclass(frozen=True, slots=True)
class ShiftTest:
    """The shift test of one image and target."""

    score: float
    """Before any move."""
    moves: tuple[ShiftResult, ...]

    @property
    def spread(self) -> float:
        """Largest change of the target's score."""
        return max(abs(move.score - self.score) for move in self.moves)

    @property
    def correlation(self) -> float:
        """Lowest correlation of a map with the one before."""
        return min(move.correlation for move in self.moves)

    @property
    def verdict(self) -> str:
        """In words."""
        far = max(max(abs(move.right), abs(move.down)) for move in self.moves)
        moved = f"when the picture moves by up to {far} pixels"
        figures = f"score by up to {self.spread:.2f}, map correlation down to {self.correlation:.2f}"
        if not all(move.same_answer for move in self.moves):
            return f"The answer itself changes {moved} ({figures})."
        if self.correlation >= _STABLE_CORRELATION and self.spread <= _STABLE_SPREAD:
            return f"Answer and map hold {moved} ({figures})."
        return f"The answer holds {moved}, score and map not quite ({figures})."


def run_shift_test(
    backend: Backend,
    image: Image,
    target: Target,
    *,
    pixels: Sequence[int] = (2, 4, 8),
    method: str = DEFAULT_METHOD,
    block: str | None = None,
) -> ShiftTest:
    """Move an image by each of so many pixels in four directions; one forward and map for each."""
    geometry = backend.model.geometry
    moves = [(0, 0)] + [move for far in pixels for move in ((far, 0), (-far, 0), (0, far), (0, -far))]
    seen = [geometry.see_moved(image, right, down) for right, down in moves]
    x = torch.stack([geometry.normalise(pil_image) for pil_image, _ in seen])
    forward = run_forward(backend.model, x, backend=backend, block=block)
    maps = attribute_each(forward, [target] * len(moves), method=method)
    scores = target.of(backend.model.scoring.scores(forward.logits)).tolist()
    answers = _answers(backend, forward.logits)
    laid = [_project_map(attribution, frame) for attribution, (_, frame) in zip(maps, seen, strict=True)]
    return ShiftTest(
        score=scores[0],
        moves=tuple(
            ShiftResult(right, down, scores[n], answers[n] == answers[0], _correlation(laid[0], laid[n]))
            for n, (right, down) in enumerate(moves)
            if n
        ),
    )


def _answers(backend: Backend, logits: Tensor) -> list[tuple[int, ...]]:
    """Return the accepted classes of each image."""
    model = backend.model
    ranked = [rank_classes(row, model.classes, model.scoring) for row in logits]
    return [tuple(sorted(item.index for item in row if item.accepted)) for row in ranked]


def _project_map(attribution: Attribution, frame: Frame) -> np.ndarray:
    """Return the map on a small version of the image."""
    return frame.resized_to(_COMPARE_SIDE).unwarp(attribution.values)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    both = np.isfinite(one) & np.isfinite(other)
    if not both.any() or one[both].std() == 0 or other[both].std() == 0:
        return 0.0
    return float(np.corrcoef(one[both], other[both])[0, 1])
