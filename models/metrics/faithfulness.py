"""Whether the model reacts to what a map marks, more than to maps that know nothing of it.

Two tests of different families. Deletion covers the image in the order of the map, strongest first, and
watches the score fall; insertion uncovers it in that order and watches it rise (Petsiuk et al. 2018). Single
deletion covers one patch at a time and asks whether the map ranks the patches by what the logit loses. Such
figures mean little alone: any smooth map that reaches the middle does well on some images. So the same is
done with control maps on the same image (:mod:`models.metrics.control_maps`), and only the place of the map
among them counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.attribution.forward import predict_logits
from models.attribution.masking import Cover, check_cover, covered_input
from models.attribution.perturbation import window_starts
from models.attribution.result import STATUS_MEANINGS, Attribution
from models.attribution.targets import Target
from models.backends.base import Backend
from models.devices import to_numpy
from models.errors import ExplanationError
from models.metrics.agreement import rank_correlation
from models.metrics.control_maps import centre_spot, edge_map, make_control_maps, picture_seed
from models.progress import Progress, no_progress

_SURE, _LIKELY = 0.05, 0.25
"""Chances at which a map without any knowledge would come as far among so many controls."""
_MIDDLE = 50.0
_PATCHES = 7
"""Along each side, of single deletion."""
_FEWEST_WITH_SPOT = 4
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
class Rank:
    """The place of a map's figure among those of the controls."""

    value: float
    controls: tuple[float, ...]
    """Lowest first."""

    @property
    def percentile(self) -> float:
        """Share of the controls with a lower figure, in percent; equal ones count half."""
        below = sum(other < self.value for other in self.controls)
        equal = sum(other == self.value for other in self.controls)
        return 100.0 * (below + equal / 2) / len(self.controls)

    @property
    def level(self) -> int:
        """2 where a map without knowledge would hardly ever (1 in 20) come as far, 1 where seldom (1 in 4),
        -1 where it would hardly ever do as badly, 0 else. Fewer than 19 controls cannot tell 1 in 20.
        """
        count = len(self.controls) + 1
        above = (1 + sum(other >= self.value for other in self.controls)) / count
        below = (1 + sum(other <= self.value for other in self.controls)) / count
        if above <= _LIKELY:
            return 2 if above <= _SURE else 1
        return -1 if below <= _SURE else 0


@dataclass(frozen=True, slots=True)
class FaithfulnessResult:
    """A measure of how far the model reacts to what one map marks."""

    deletion: ScoreCurve
    insertion: ScoreCurve
    curves: Rank
    """Of insertion's area less deletion's."""
    single: Rank
    """Of the rank correlation of the map with what the logit loses when one patch is covered."""
    centre: float
    """Curves' figure of a round spot in the middle, which suits many photographs."""
    cover: Cover

    @property
    def score(self) -> float:
        """Insertion's area less deletion's; higher is better, 0 is what a map that says nothing gets."""
        return self.curves.value

    @property
    def control_maps(self) -> int:
        """Number of the controls."""
        return len(self.curves.controls)

    @property
    def percentile(self) -> float:
        """Share of the controls with a lower score, in percent; equal ones count half."""
        return self.curves.percentile

    @property
    def single_deletion(self) -> float:
        """Rank correlation of the map with what the logit loses patch by patch, -1 to 1."""
        return self.single.value

    @property
    def single_percentile(self) -> float:
        """Share of the controls with a lower rank correlation, in percent."""
        return self.single.percentile

    @property
    def disagree(self) -> bool:
        """Whether one test finds that the model reacts to the map, and by the other half of the controls or
        more do as well.
        """
        percentiles = (self.percentile, self.single_percentile)
        return max(self.curves.level, self.single.level) > 0 and min(percentiles) <= _MIDDLE

    @property
    def verdict(self) -> str:
        """In words that claim no more than that the model reacts."""
        beaten = f"{self.percentile:.0f} % of {self.control_maps} control maps"
        sentence = {
            2: f"The model reacts to what the map marks, more than to {beaten}.",
            1: f"The model reacts somewhat more to what the map marks than elsewhere: {beaten} do worse.",
            0: f"The model reacts to what the map marks as to other places: {beaten} do worse.",
            -1: f"The model reacts less to what the map marks than to other places: {beaten} do worse.",
        }[self.curves.level]
        if self.centre >= self.score:
            sentence += " A plain spot in the middle of the picture does as well."
        if self.disagree:
            sentence += (
                " The two tests disagree: when patches are covered one at a time, "
                f"{self.single_percentile:.0f} % do worse."
            )
        return sentence


def measure_faithfulness(
    backend: Backend,
    x: Tensor,
    attribution: Attribution,
    *,
    bank: np.ndarray | None = None,
    steps: int = 10,
    control_maps: int = 19,
    cover: str = "blur",
    seed: int | None = None,
    batch: int = 8,
    progress: Progress = no_progress,
) -> FaithfulnessResult:
    """Judge one map of one image (3, H, W), by as many forwards as :func:`count_faithfulness_forwards` says.

    ``bank`` holds maps (N, rows, cols) of other pictures for the controls, which are drawn anew for each
    picture, or by ``seed``. Raises ExplanationError for an empty map, UnknownChoice for the cover, ValueError
    for counts out of range.
    """
    if attribution.status != "ok":
        raise ExplanationError(f"There is no map to judge: {STATUS_MEANINGS[attribution.status]}")
    if not (2 <= steps <= _MAX_COUNT and 1 <= control_maps <= _MAX_COUNT):
        raise ValueError(
            f"steps (2 to {_MAX_COUNT}) is {steps}, control_maps (1 to {_MAX_COUNT}) is {control_maps}."
        )
    how, grid = check_cover(cover), attribution.values
    seed = picture_seed(x) if seed is None else seed
    # The spot is judged in any case; it is a control itself where there are several.
    with_spot = control_maps >= _FEWEST_WITH_SPOT
    edges = edge_map(x, grid.shape)
    controls = make_control_maps(grid, bank, control_maps - with_spot, seed=seed, edges=edges)
    maps = [grid, centre_spot(grid.shape), *controls]
    first = 1 if with_spot else 2
    curves = score_curves(backend, x, maps, attribution.target, how, steps, seed, batch, progress)
    areas = [insertion.area - deletion.area for deletion, insertion in curves]
    lost = patch_losses(backend, x, attribution.target, how, batch)
    fits = [rank_patches(item, lost) for item in maps]
    return FaithfulnessResult(
        *curves[0],
        curves=Rank(areas[0], tuple(sorted(areas[first:]))),
        single=Rank(fits[0], tuple(sorted(fits[first:]))),
        centre=areas[1],
        cover=how,
    )


def count_faithfulness_forwards(steps: int = 10, control_maps: int = 19) -> int:
    """Return the forwards that the check of one map takes."""
    maps = control_maps + (1 if control_maps >= _FEWEST_WITH_SPOT else 2)
    return maps * 2 * (steps - 1) + 2 + _PATCHES**2 + 1


def score_curves(
    backend: Backend,
    x: Tensor,
    maps: Sequence[np.ndarray],
    target: Target,
    cover: Cover,
    steps: int,
    seed: int = 0,
    batch: int = 8,
    progress: Progress = no_progress,
) -> list[tuple[ScoreCurve, ScoreCurve]]:
    """Return the deletion and insertion curves of several maps of one image (3, H, W)."""
    hidden = covered_input(x[None], cover)[0]
    # The same for all maps: the image as it is, and all of it covered.
    ends = _scores(backend, torch.stack([x, hidden]), target, batch)
    curves = []
    for number, grid in enumerate(maps):
        order = _pixel_order(grid, (x.shape[1], x.shape[2]), seed)
        curves.append(_curves(backend, x, hidden, order, target, steps, batch, ends))
        progress("faithfulness", number + 1, len(maps))
    return curves


def patch_losses(
    backend: Backend, x: Tensor, target: Target, cover: Cover, batch: int = 8,
    grid: tuple[int, int] = (_PATCHES, _PATCHES),
) -> np.ndarray:  # fmt: skip
    """Return what the target's logit loses when one patch of an image (3, H, W) is covered, for a grid of so
    many rows and columns of patches.
    """
    hidden = covered_input(x[None], cover)[0]
    images = [x]
    (tops, down), (lefts, across) = map(_patch_places, x.shape[1:], grid)
    for top in tops:
        for left in lefts:
            image = x.clone()
            place = (slice(None), slice(top, top + down), slice(left, left + across))
            image[place] = hidden[place]
            images.append(image)
    logits = torch.cat([predict_logits(backend, part) for part in torch.split(torch.stack(images), batch)])
    values = to_numpy(target.of(logits).double())
    return np.asarray((values[0] - values[1:]).reshape(len(tops), len(lefts)))


def rank_patches(grid: np.ndarray, losses: np.ndarray) -> float:
    """Return Spearman's rank correlation of a map with what the patches lose; 0 for an even map."""
    laid = torch.from_numpy(grid.astype(np.float32))[None, None]
    if min(grid.shape) < min(losses.shape):
        laid = F.interpolate(laid, [4 * side for side in losses.shape], mode="bilinear", align_corners=False)
    patches = to_numpy(F.adaptive_avg_pool2d(laid, (losses.shape[0], losses.shape[1]))[0, 0])
    return rank_correlation(patches, losses)


def _patch_places(length: int, patches: int) -> tuple[list[int], int]:
    """Return where patches begin along a length, and how long they are."""
    count = min(patches, length)
    side = -(-length // count)
    starts = window_starts(length, side, side)
    return starts[:count], side


def _pixel_order(grid: np.ndarray, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Return each input pixel's place (H, W) when sorted by the map, strongest first, from 0 to below 1;
    equal ones in a random order, so that none is favoured for where it lies.
    """
    laid = F.interpolate(
        torch.from_numpy(grid.copy())[None, None], size, mode="bilinear", align_corners=False
    )
    flat = laid.flatten()
    shuffled = torch.randperm(flat.numel(), generator=torch.Generator().manual_seed(seed))
    order = shuffled[torch.argsort(flat[shuffled], descending=True, stable=True)]
    places = torch.empty(order.numel())
    places[order] = torch.arange(order.numel()) / order.numel()
    return places.view(size)


def _curves(
    backend: Backend, x: Tensor, hidden: Tensor, order: Tensor, target: Target, steps: int, batch: int,
    ends: Sequence[float],
) -> tuple[ScoreCurve, ScoreCurve]:  # fmt: skip
    """Return the deletion and insertion curves along one order, between the scores at their ends."""
    shares = torch.linspace(0, 1, steps + 1)
    first = order[None] < shares[1:-1, None, None]
    images = torch.where(torch.cat([first, ~first])[:, None], hidden, x)
    scores = _scores(backend, images, target, batch)
    (whole, covered), along = ends, tuple(shares.tolist())
    return (
        ScoreCurve(along, (whole, *scores[: steps - 1], covered)),
        ScoreCurve(along, (covered, *scores[steps - 1 :], whole)),
    )


def _scores(backend: Backend, images: Tensor, target: Target, batch: int) -> list[float]:
    logits = torch.cat([predict_logits(backend, part) for part in torch.split(images, batch)])
    values: list[float] = target.of(backend.model.scoring.scores(logits)).tolist()
    return values
