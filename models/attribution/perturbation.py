"""Methods that cover parts of the image and watch the score: occlusion, patch occlusion and RISE.

Occlusion and RISE cover by the mean colour of the model's preprocessing, 0 in its normalised input.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise, product

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attribution.cells import average_cells
from models.attribution.forward import BATCH_SIZE, ForwardPass, predict_logits
from models.attribution.masking import COVERS, covered_input
from models.attribution.parameters import OcclusionParameters, PatchOcclusionParameters, RiseParameters
from models.attribution.targets import Target


def occlusion(
    forward: ForwardPass, targets: Sequence[Sequence[Target]], parameters: OcclusionParameters
) -> list[Tensor]:
    """Return signed maps, (N, rows, cols) for each sequence of targets (Zeiler & Fergus 2014).

    A pixel's value is how much of the logit goes when a window is covered, averaged over the windows that
    cover the pixel. The windows reach from edge to edge, none is cut; the forwards serve all targets.
    """
    height, width = forward.x.shape[2:]
    side = min(parameters.window, height, width)
    tops, lefts = (window_starts(length, side, parameters.stride) for length in (height, width))
    places = [(top, left) for top in tops for left in lefts]
    windows = [(slice(None), slice(top, top + side), slice(left, left + side)) for top, left in places]
    maps = torch.zeros(len(targets), len(forward.x), height, width)
    for n, x in enumerate(forward.x):
        logits = _logits_without(forward, x, torch.zeros_like(x), windows)
        for k, image_targets in enumerate(targets):
            values = image_targets[n].of(logits)
            maps[k, n] = _lay_windows(values[0] - values[1:], places, side, height, width)
    counts = _lay_windows(torch.ones(len(places)), places, side, height, width)
    return [average_cells(item / counts, parameters.cell) for item in maps]


def patch_occlusion(
    forward: ForwardPass, targets: Sequence[Sequence[Target]], parameters: PatchOcclusionParameters
) -> list[Tensor]:
    """Return signed maps, (N, rows, cols) for each sequence of targets: what of the logit goes when each
    patch alone is covered, by the mean of its blur and the image's mean colour.

    One cover's own sight counts half that way. The patches tile the image, so a map ranks places as single
    deletion does, from half of occlusion's forwards, which serve all targets.
    """
    height, width = forward.x.shape[2:]
    down, across = (
        [round(place * length / count) for place in range(count + 1)]
        for length, count in zip(
            (height, width), count_patches(parameters.patches, height, width), strict=True
        )
    )
    places = [
        (slice(None), slice(*rows), slice(*cols)) for rows, cols in product(pairwise(down), pairwise(across))
    ]
    maps = torch.zeros(len(targets), len(forward.x), height, width)
    hidden = torch.stack([covered_input(forward.x, cover) for cover in COVERS]).mean(0)
    for n, x in enumerate(forward.x):
        logits = _logits_without(forward, x, hidden[n], places)
        for k, image_targets in enumerate(targets):
            values = image_targets[n].of(logits)
            for (_, rows, cols), value in zip(places, (values[0] - values[1:]).tolist(), strict=True):
                maps[k, n, rows, cols] = value
    return [average_cells(item, parameters.cell) for item in maps]


def _logits_without(
    forward: ForwardPass, x: Tensor, hidden: Tensor, places: Sequence[tuple[slice, slice, slice]]
) -> Tensor:
    """Return logits (1 + places, classes): of an image, and of it with each place as in ``hidden``."""
    # Nothing is covered first, in the same batch: a convolution rounds by the size of its batch.
    nothing = (slice(0), slice(0), slice(0))
    covered = [nothing, *places]
    logits = []
    for start in range(0, len(covered), BATCH_SIZE):
        part = covered[start : start + BATCH_SIZE]
        images = x.repeat(len(part), 1, 1, 1)
        for image, place in zip(images, part, strict=True):
            image[place] = hidden[place]
        logits.append(predict_logits(forward.backend, images))
    return torch.cat(logits)


def count_patches(patches: int, height: int, width: int) -> tuple[int, int]:
    """Return rows and columns of patches, so many along the shorter side and as large along the longer."""
    rows, cols = (max(1, round(patches * length / min(height, width))) for length in (height, width))
    return min(rows, height), min(cols, width)


def window_starts(length: int, side: int, stride: int) -> list[int]:
    """Return where windows begin along a length: evenly from the first pixel to the last whole window, no
    further apart than ``stride``, nor than leaves no pixel uncovered.
    """
    count = -(-(length - side) // min(stride, side)) + 1
    return [round(place * (length - side) / max(count - 1, 1)) for place in range(count)]


def _lay_windows(
    values: Tensor, places: Sequence[tuple[int, int]], side: int, height: int, width: int
) -> Tensor:
    """Return (height, width) with each window's value added where it lies."""
    laid = torch.zeros(height, width)
    for value, (top, left) in zip(values.float(), places, strict=True):
        laid[top : top + side, left : left + side] += value
    return laid


def rise(
    forward: ForwardPass, targets: Sequence[Sequence[Target]], parameters: RiseParameters
) -> list[Tensor]:
    """Return signed maps, (N, rows, cols) for each sequence of targets, by RISE (Petsiuk et al. 2018).

    Each random mask shows half of the image; a pixel's value is how much higher the target's score is when
    it is shown: the covariance of score and mask, divided by the variance of the mask. The forwards serve
    all targets.
    """
    masks = rise_masks(forward.x.shape[2], forward.x.shape[3], parameters)
    scoring = forward.model.scoring
    maps = torch.zeros(len(targets), len(forward.x), *masks.shape[1:])
    for n, x in enumerate(forward.x):
        scores = torch.cat(
            [
                scoring.scores(predict_logits(forward.backend, x * part[:, None]))
                for part in torch.split(masks, BATCH_SIZE)
            ]
        )
        for k, image_targets in enumerate(targets):
            score = image_targets[n].of(scores)
            maps[k, n] = torch.einsum("m,mhw->hw", (score - score.mean()).float(), masks) / len(masks)
    maps = maps / masks.var(dim=0, correction=0).clamp(min=1e-6)
    return [average_cells(item, parameters.cell) for item in maps]


def rise_masks(height: int, width: int, parameters: RiseParameters) -> Tensor:
    """Return (masks, height, width) in [0, 1]: coarse random cells, enlarged smoothly, shifted at random."""
    generator = torch.Generator().manual_seed(parameters.seed)
    cell = -(-min(height, width) // parameters.cells)
    rows, cols = -(-height // cell) + 1, -(-width // cell) + 1
    coarse = (torch.rand(parameters.masks, 1, rows, cols, generator=generator) < 0.5).float()
    fine = F.interpolate(coarse, (rows * cell, cols * cell), mode="bilinear", align_corners=False)
    fine = fine[:, 0].clamp(0, 1)
    offsets = torch.randint(0, cell, (parameters.masks, 2), generator=generator).tolist()
    return torch.stack(
        [fine[i, top : top + height, left : left + width] for i, (top, left) in enumerate(offsets)]
    )
