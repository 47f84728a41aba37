"""The integral of a score's gradient along the line from the mean colour to an image, by steps that go where
they are needed.

The score's rise along any piece of the line is known from its two ends. So each piece tells by how much its
own shares miss it, and the pieces that miss most are halved, until all shares together add up to the whole
rise to within 5 %, or the steps are spent. Equal steps need several times as many: along the line a network
of ReLUs has long even pieces, and a few where the gradient jumps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from models.attribution.forward import BATCH_SIZE

CLOSE_ENOUGH = 0.05
"""Residual at which no more steps are taken."""
_NODES = (0.5 - 12**-0.5, 0.5 + 12**-0.5)
"""Of Gauss and Legendre's rule of two points, exact for cubics."""
_MOST_HALVED = 8
Piece = tuple[float, float]


@dataclass(frozen=True, slots=True)
class PathIntegral:
    """Shares of a score's rise, with how far they are from adding up to it."""

    shares: Tensor
    """(H, W), summed over the channels; (parts, H, W) where the image was taken apart."""
    rise: float
    """Of the score from the line's beginning to the image."""
    steps: int
    """Gradients that were taken."""

    @property
    def residual(self) -> float:
        """Share of the rise that the shares miss, 0 where they add up to it."""
        return abs(float(self.shares.sum()) - self.rise) / max(abs(self.rise), 1e-12)


def integrate_gradient(
    score: Callable[[Tensor], Tensor], x: Tensor, *, steps: int, most_steps: int, parts: Tensor | None = None
) -> PathIntegral:
    """Integrate the gradient of ``score``, a function of images or maps (N, C, H, W), along the line from 0
    to one of them (C, H, W): at ``steps`` places first, at ``most_steps`` at most. With ``parts``
    (parts, C, H, W), which add up to it, each has shares of its own.
    """
    taken_apart = x[None] if parts is None else parts
    pieces = max(1, steps // len(_NODES))
    edges = [n / pieces for n in range(pieces + 1)]
    values = dict(zip(edges, _scores(score, x, edges), strict=True))
    shares = _integrate(score, x, taken_apart, list(pairwise(edges)))
    taken, rise = len(shares) * len(_NODES), values[1.0] - values[0.0]
    while True:
        errors = {
            piece: float(part.sum()) - (values[piece[1]] - values[piece[0]]) for piece, part in shares.items()
        }
        left = (most_steps - taken) // (2 * len(_NODES))
        if abs(sum(errors.values())) <= CLOSE_ENOUGH * abs(rise) or left < 1:
            total = sum(shares.values(), torch.zeros_like(taken_apart[:, 0]))
            return PathIntegral(total[0] if parts is None else total, rise, taken)
        worst = sorted(errors, key=lambda piece: -abs(errors[piece]))
        halves: list[Piece] = []
        for begin, end in worst[: min(left, _MOST_HALVED, max(1, len(worst) // 2))]:
            del shares[begin, end]
            halves += [(begin, (begin + end) / 2), ((begin + end) / 2, end)]
        middles = [end for _, end in halves[::2]]
        values |= dict(zip(middles, _scores(score, x, middles), strict=True))
        shares |= _integrate(score, x, taken_apart, halves)
        taken += len(halves) * len(_NODES)


def _scores(score: Callable[[Tensor], Tensor], x: Tensor, places: Sequence[float]) -> list[float]:
    """Return the score at places of the line, by the same network that is differentiated."""
    values: list[float] = []
    for part in torch.split(torch.tensor(places, dtype=torch.float64), BATCH_SIZE):
        with torch.enable_grad():
            values += score(_along(part, x)).detach().double().tolist()
    return values


def _integrate(
    score: Callable[[Tensor], Tensor], x: Tensor, parts: Tensor, pieces: Sequence[Piece]
) -> dict[Piece, Tensor]:
    """Return each piece's shares, (parts, H, W)."""
    shares = []
    for part in _portions(pieces):
        places = torch.tensor(
            [begin + (end - begin) * node for begin, end in part for node in _NODES], dtype=torch.float64
        )
        images = _along(places, x).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(score(images).sum(), images)
        means = gradient.detach().view(len(part), len(_NODES), *x.shape).mean(1)
        shares += [
            (mean * parts).sum(1) * (end - begin) for mean, (begin, end) in zip(means, part, strict=True)
        ]
    return dict(zip(pieces, shares, strict=True))


def _portions(pieces: Sequence[Piece]) -> list[Sequence[Piece]]:
    """Return the pieces in parts of as many images as are run at once."""
    size = BATCH_SIZE // len(_NODES)
    return [pieces[start : start + size] for start in range(0, len(pieces), size)]


def _along(places: Tensor, x: Tensor) -> Tensor:
    return places.to(x)[:, None, None, None] * x
