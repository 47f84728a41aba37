"""Methods that ask about the pixels themselves, by integrating gradients or by covering parts.

What is covered, or where the integral starts, is the mean colour of the model's preprocessing: 0 in its
normalised input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from captum.attr import Occlusion
from torch import Tensor
from torch.nn import functional as F

from models.attribution.forward import ForwardPass, predict_logits, score_function
from models.attribution.targets import Target


@dataclass(frozen=True, slots=True)
class Effort:
    """How much work the costly methods do; more is less noise."""

    steps: int = 32
    """Of the integral, each one forward and one backward."""
    window: int = 48
    """Side of what is covered, input pixels."""
    stride: int = 24
    """From window to window, input pixels."""
    masks: int = 400
    """Random masks of RISE, each one forward."""
    cells: int = 7
    """Of a RISE mask along the shorter side, before it is smoothed."""
    cell: int = 8
    """Side of a cell of the map in input pixels; single pixels are more than a person can read."""
    seed: int = 0
    batch: int = 8


QUICK = Effort(steps=12, window=56, stride=28, masks=96)
"""Enough to compare maps with each other."""


def occlusion(evidence: ForwardPass, targets: Sequence[Target], effort: Effort) -> Tensor:
    """Signed maps (N, H, W), by Captum (Zeiler & Fergus 2014): how much of the logit goes when a window is
    covered, averaged over the windows that cover a pixel.
    """
    maps = []
    window = min(effort.window, *evidence.x.shape[2:])
    for x, target in zip(evidence.x, targets, strict=True):
        with torch.no_grad():
            found = Occlusion(score_function(evidence, target)).attribute(
                x[None],
                sliding_window_shapes=(x.shape[0], window, window),
                strides=(x.shape[0], min(effort.stride, window), min(effort.stride, window)),
                perturbations_per_eval=effort.batch,
            )
        maps.append(found[0].mean(0))
    return torch.stack(maps).float()


def rise(evidence: ForwardPass, targets: Sequence[Sequence[Target]], effort: Effort) -> list[Tensor]:
    """Signed maps, (N, H, W) for each sequence of targets (one a picture), by RISE (Petsiuk et al. 2018).

    Each random mask shows half of the picture; a pixel's value is how much higher the target's score is when
    it is shown: the covariance of score and mask, by the variance of the mask. The forwards serve all
    targets.
    """
    masks = rise_masks(evidence.x.shape[2], evidence.x.shape[3], effort)
    scoring = evidence.model.scoring
    maps = torch.zeros(len(targets), len(evidence.x), *masks.shape[1:])
    for n, x in enumerate(evidence.x):
        scores = torch.cat(
            [
                scoring.scores(predict_logits(evidence.engine, x * part[:, None]))
                for part in torch.split(masks, effort.batch)
            ]
        )
        for k, row in enumerate(targets):
            deviation = (row[n].of(scores) - row[n].of(scores).mean()).float()
            maps[k, n] = torch.einsum("m,mhw->hw", deviation, masks) / len(masks)
    return list(maps / masks.var(dim=0, correction=0).clamp(min=1e-6))


def rise_masks(height: int, width: int, effort: Effort) -> Tensor:
    """(masks, height, width) in [0, 1]: coarse random cells, enlarged smoothly and shifted at random."""
    generator = torch.Generator().manual_seed(effort.seed)
    cell = -(-min(height, width) // effort.cells)
    rows, cols = -(-height // cell) + 1, -(-width // cell) + 1
    coarse = (torch.rand(effort.masks, 1, rows, cols, generator=generator) < 0.5).float()
    fine = F.interpolate(coarse, (rows * cell, cols * cell), mode="bilinear", align_corners=False)[
        :, 0
    ].clamp(0, 1)
    offsets = torch.randint(0, cell, (effort.masks, 2), generator=generator).tolist()
    return torch.stack(
        [fine[i, top : top + height, left : left + width] for i, (top, left) in enumerate(offsets)]
    )
