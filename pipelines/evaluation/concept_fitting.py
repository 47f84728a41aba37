"""Finds the directions of a block's features along which a model's evidence runs.

Two things decide what comes out, both measured on specimens whose marks are known. Cells count by the
evidence that they carry for the predicted class (HiResCAM at the block), for a mark covers one cell in a
hundred, and a plain factorization describes the other ninety-nine. And features are whitened by their own
covariance first, for what all cells share, wings and ground, is where the variance is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.introspection.concept_set import FACTORIZATION, check_method, keep_largest, solve_codes
from models.progress import Progress, no_progress
from pipelines.errors import DataError

_SHRINKAGE = 0.1
"""Share of the mean variance that is added along every direction, so that noise is not blown up."""
_MOST_AXES = 128
"""Of the features' own, by their variance: a last block has a thousand channels, most of them noise."""
_LEAST_WEIGHT = 1e-4
"""Of the largest; cells below carry no evidence."""
_STARTS, _SHORT, _ROUNDS = 4, 20, 150
"""Descents that are begun, their rounds, and those of the best one."""
_SETTLED = 1e-6
_ACTIVE = 3
"""Codes of a cell that the autoencoder keeps."""
_STEPS, _BATCH, _RATE = 1_500, 512, 3e-3


@dataclass(frozen=True)
class FittedDirections:
    """Concepts before their pictures are looked at; see :class:`ConceptSet` for the tensors."""

    mean: Tensor
    directions: Tensor
    encoder: Tensor
    gram: Tensor | None
    bias: Tensor | None
    active: int
    residual: float
    """Share of the weighted, whitened features' squares that is not described."""


def fit_directions(
    features: Tensor, evidence: Tensor, count: int, *, method: str = FACTORIZATION, seed: int = 0,
    progress: Progress = no_progress,
) -> FittedDirections:  # fmt: skip
    """Find ``count`` directions of maps (N, C, rows, cols), each cell weighted by its evidence
    (N, rows, cols), 0 or more.

    Raises UnknownChoice for another method, DataError for fewer different cells with evidence.
    """
    check_method(method)
    cells = features.double().permute(0, 2, 3, 1).reshape(-1, features.shape[1])
    weights = evidence.double().clamp(min=0)
    weights = (weights / weights.sum((1, 2), keepdim=True).clamp(min=1e-12)).flatten()
    used = weights > _LEAST_WEIGHT * weights.max()
    distinct = len(torch.unique(cells[used].float(), dim=0))
    if distinct < count:
        raise DataError(f"{distinct} cells have evidence; that is too few for {count} concepts.")
    mean = cells.mean(0)
    whiten, colour = whitening(cells - mean)
    rows = ((cells[used] - mean) @ whiten, weights[used])
    find = _factorize if method == FACTORIZATION else _train_autoencoder
    return find(*rows, mean, whiten, colour, count, seed, progress)


def whitening(cells: Tensor) -> tuple[Tensor, Tensor]:
    """Return the matrices (C, axes) that give centred cells (n, C) a covariance near unity, and (axes, C)
    that lead back. Axes of little variance are left small, or out.
    """
    variances, axes = torch.linalg.eigh(cells.T @ cells / len(cells))
    deviations = (variances.clamp(min=0) + _SHRINKAGE * variances.mean().clamp(min=1e-12)).sqrt()
    axes, deviations = axes[:, -_MOST_AXES:], deviations[-_MOST_AXES:]
    return axes / deviations, (axes * deviations).T


def _factorize(
    cells: Tensor, weights: Tensor, mean: Tensor, whiten: Tensor, colour: Tensor, count: int, seed: int,
    progress: Progress,
) -> FittedDirections:  # fmt: skip
    """Fit by semi-NMF (Ding et al. 2010): codes are 0 or more, directions have any sign."""
    rows = cells * weights.sqrt()[:, None]
    directions, residual = _descend(rows, _start(rows, count, seed), _ROUNDS, progress)
    lengths = directions.norm(dim=1, keepdim=True).clamp(min=1e-12)
    directions = directions / lengths
    gram = directions @ directions.T + 1e-9 * torch.eye(count, dtype=directions.dtype)
    return FittedDirections(mean, directions @ colour, directions @ whiten.T, gram, None, count, residual)


def _start(rows: Tensor, count: int, seed: int) -> Tensor:
    """Return the directions of the best of several short descents: one alone may have two directions for
    the same thing, and none for another.
    """
    starts = (_spread_out(rows, count, torch.Generator().manual_seed(seed + n)) for n in range(_STARTS))
    return min((_descend(rows, start, _SHORT) for start in starts), key=lambda result: result[1])[0]


def _descend(
    rows: Tensor, directions: Tensor, rounds: int, progress: Progress = no_progress
) -> tuple[Tensor, float]:
    """Return directions (k, axes) after alternating least squares, and the share of squares they miss."""
    total, before, residual = float(rows.square().sum()), float("inf"), 1.0
    for turn in range(rounds):
        directions = directions / directions.norm(dim=1, keepdim=True).clamp(min=1e-12)
        codes = solve_codes(rows @ directions.T, directions @ directions.T)
        ridge = 1e-9 * torch.eye(len(directions), dtype=codes.dtype) * codes.square().sum().clamp(min=1e-12)
        directions = torch.linalg.solve(codes.T @ codes + ridge, codes.T @ rows)
        residual = float((rows - codes @ directions).square().sum()) / max(total, 1e-300)
        progress("finding concepts", turn + 1, rounds)
        if before - residual < _SETTLED:
            break
        before = residual
    progress("finding concepts", rounds, rounds)
    return directions, residual


def _spread_out(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return rows that point into different directions, drawn as k-means++ draws its centres."""
    lengths = rows.norm(dim=1)
    unit = rows / lengths.clamp(min=1e-12)[:, None]
    chosen = [int(lengths.argmax())]
    for _ in range(count - 1):
        apart = (1 - (unit @ unit[chosen].T).amax(1)).clamp(min=0) * lengths
        chosen.append(int(torch.multinomial(apart + 1e-12, 1, generator=generator)))
    return rows[chosen].clone()


def _train_autoencoder(
    cells: Tensor, weights: Tensor, mean: Tensor, whiten: Tensor, colour: Tensor, count: int, seed: int,
    progress: Progress,
) -> FittedDirections:  # fmt: skip
    """Train a sparse autoencoder whose codes are the largest few of each cell (Gao et al. 2024)."""
    generator = torch.Generator().manual_seed(seed)
    rows, share = cells.float(), (weights / weights.mean()).float()
    start = _start(cells * weights.sqrt()[:, None], count, seed).float()
    decoder = (start / start.norm(dim=1, keepdim=True).clamp(min=1e-12)).requires_grad_()
    encoder = decoder.detach().clone().requires_grad_()
    bias = torch.zeros(count, requires_grad=True)
    optimizer = torch.optim.Adam([decoder, encoder, bias], lr=_RATE)
    active = min(_ACTIVE, count)

    def loss_of(part: Tensor) -> Tensor:
        codes = keep_largest((rows[part] @ encoder.T + bias).clamp(min=0), active)
        missed: Tensor = (rows[part] - codes @ decoder).square().sum(1)
        return (missed * share[part]).sum()

    epochs = -(-_STEPS * _BATCH // max(len(rows), _BATCH))
    for epoch in range(epochs):
        for part in torch.split(torch.randperm(len(rows), generator=generator), _BATCH):
            optimizer.zero_grad()
            (loss_of(part) / len(part)).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            with torch.no_grad():
                decoder /= decoder.norm(dim=1, keepdim=True).clamp(min=1e-12)
        progress("training the autoencoder", epoch + 1, epochs)
    with torch.no_grad():
        left = float(loss_of(torch.arange(len(rows))))
        residual = left / float((rows.square().sum(1) * share).sum().clamp(min=1e-12))
    return FittedDirections(
        mean, decoder.detach().double() @ colour, encoder.detach().double() @ whiten.T, None,
        bias.detach().double(), active, residual,
    )  # fmt: skip
