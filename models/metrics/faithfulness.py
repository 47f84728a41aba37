"""Whether the model reacts to what a map marks, more than to random maps as smooth as it.

Deletion covers the image in the order of the map, strongest first, and watches the score fall; insertion
uncovers it in that order and watches it rise (Petsiuk et al. 2018). Such curves mean little alone: any smooth
map that reaches the middle does well on some images. So the same is done with random maps on the same
image, made from the map by drawing the phases of its Fourier transform anew, which leaves its smoothness
and contrast as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.attribution.forward import predict_logits
from models.attribution.masking import Cover, check_cover, covered_input
from models.attribution.result import STATUS_MEANINGS, Attribution
from models.attribution.targets import Target
from models.backends.base import Backend
from models.errors import ExplanationError
from models.progress import Progress, no_progress

_HIGH_PERCENTILE, _MEDIUM_PERCENTILE = 95.0, 75.0
_MAX_COUNT = 200


@dataclass(frozen=True, slots=True)
class ScoreCurve:
    """Scores along the steps."""

    shares: tuple[float, ...]
    """Of the image covered (deletion) or shown (insertion), 0 to 1."""
    scores: tuple[float, ...]
    """Of the target."""

    @property
    def area(self) -> float:
        """Under the curve, by the trapezoid rule."""
        return float(np.trapezoid(self.scores, self.shares))


@dataclass(frozen=True, slots=True)
class FaithfulnessResult:
    """A measure of how far the model reacts to what one map marks."""

    deletion: ScoreCurve
    insertion: ScoreCurve
    random_scores: tuple[float, ...]
    """Of the random maps, lowest first."""
    centre: float
    """Of a round spot in the middle, which suits many photographs."""
    cover: Cover

    @property
    def score(self) -> float:
        """Insertion's area less deletion's; higher is better, 0 is what a map that says nothing gets."""
        return self.insertion.area - self.deletion.area

    @property
    def random_maps(self) -> int:
        """Number of the random maps."""
        return len(self.random_scores)

    @property
    def percentile(self) -> float:
        """Share of the random maps with a lower score, in percent; equal ones count half."""
        below = sum(other < self.score for other in self.random_scores)
        equal = sum(other == self.score for other in self.random_scores)
        return 100.0 * (below + equal / 2) / len(self.random_scores)

    @property
    def verdict(self) -> str:
        """In words that claim no more than that the model reacts."""
        beaten = f"{self.percentile:.0f} % of {len(self.random_scores)} random maps as smooth"
        if self.percentile >= _HIGH_PERCENTILE:
            sentence = f"The model reacts to what the map marks, more than to {beaten}."
        elif self.percentile >= _MEDIUM_PERCENTILE:
            sentence = (
                f"The model reacts somewhat more to what the map marks than elsewhere: {beaten} do worse."
            )
        else:
            sentence = f"The model reacts to what the map marks as to random places: {beaten} do worse."
        if self.centre >= self.score:
            sentence += " A plain spot in the middle of the picture does as well."
        return sentence


def measure_faithfulness(
    backend: Backend,
    x: Tensor,
    attribution: Attribution,
    *,
    steps: int = 10,
    random_maps: int = 19,
    cover: str = "blur",
    seed: int = 0,
    batch: int = 8,
    progress: Progress = no_progress,
) -> FaithfulnessResult:
    """Judge one map of one image (3, H, W), with (random_maps + 2) x 2 x steps forwards.

    Raises ExplanationError for an empty map, UnknownChoice for the cover, ValueError for counts out of range.
    """
    if attribution.status != "ok":
        raise ExplanationError(f"There is no map to judge: {STATUS_MEANINGS[attribution.status]}")
    if not (2 <= steps <= _MAX_COUNT and 1 <= random_maps <= _MAX_COUNT):
        raise ValueError(
            f"steps (2 to {_MAX_COUNT}) is {steps}, random_maps (1 to {_MAX_COUNT}) is {random_maps}."
        )
    how = check_cover(cover)
    size = (x.shape[1], x.shape[2])
    grid = attribution.values
    candidates = [grid, _centre_spot(grid.shape), *random_surrogates(grid, random_maps, seed=seed)]
    orders = [_pixel_order(candidate, size) for candidate in candidates]
    hidden = covered_input(x[None], how)[0]
    curves = []
    for number, order in enumerate(orders):
        curves.append(_curves(backend, x, hidden, order, attribution.target, steps, batch))
        progress("faithfulness", number + 1, len(orders))
    scores = [insertion.area - deletion.area for deletion, insertion in curves]
    deletion, insertion = curves[0]
    return FaithfulnessResult(deletion, insertion, tuple(sorted(scores[2:])), scores[1], how)


def count_faithfulness_forwards(steps: int = 10, random_maps: int = 19) -> int:
    """Return the forwards that the check of one map takes."""
    return (random_maps + 2) * 2 * steps


def random_surrogates(grid: np.ndarray, count: int, *, seed: int) -> list[np.ndarray]:
    """Return random maps of the same shape, mean and power spectrum as ``grid`` (Theiler et al. 1992)."""
    rng = np.random.default_rng(seed)
    strength = np.abs(np.fft.rfft2(grid))
    maps = []
    for _ in range(count):
        # Phases of white noise have the symmetry that a real map's must have.
        noise = np.fft.rfft2(rng.standard_normal(grid.shape))
        phases = noise / np.maximum(np.abs(noise), 1e-12)
        phases[0, 0] = 1.0
        maps.append(np.fft.irfft2(strength * phases, s=grid.shape).astype(np.float32))
    return maps


def _centre_spot(shape: tuple[int, ...]) -> np.ndarray:
    rows, cols = (np.linspace(-1, 1, cells) for cells in shape)
    spot: np.ndarray = np.exp(-(rows[:, None] ** 2 + cols**2)).astype(np.float32)
    return spot


def _pixel_order(grid: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Return each input pixel's place (H, W) when sorted by the map, strongest first, from 0 to below 1."""
    laid = F.interpolate(
        torch.from_numpy(grid.copy())[None, None], size, mode="bilinear", align_corners=False
    )
    order = torch.argsort(laid.flatten(), descending=True, stable=True)
    places = torch.empty(order.numel())
    places[order] = torch.arange(order.numel()) / order.numel()
    return places.view(size)


def _curves(
    backend: Backend, x: Tensor, hidden: Tensor, order: Tensor, target: Target, steps: int, batch: int
) -> tuple[ScoreCurve, ScoreCurve]:
    """Return the deletion and insertion curves along one order."""
    shares = torch.linspace(0, 1, steps + 1)
    first = order[None] < shares[:, None, None]
    # Deleting all and inserting nothing are the same image, as are the two other ends.
    marked = torch.cat([first, ~first[1:-1]])[:, None]
    images = torch.where(marked, hidden, x)
    logits = torch.cat([predict_logits(backend, part) for part in torch.split(images, batch)])
    scores = target.of(backend.model.scoring.scores(logits)).tolist()
    deleted, inserted_part = scores[: steps + 1], scores[steps + 1 :]
    inserted = [deleted[-1], *inserted_part, deleted[0]]
    along = tuple(shares.tolist())
    return ScoreCurve(along, tuple(deleted)), ScoreCurve(along, tuple(inserted))
