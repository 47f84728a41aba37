"""Methods that cover parts of the image and watch the score: occlusion and RISE.

Parts are covered by the mean colour of the model's preprocessing: 0 in its normalised input.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import Occlusion
from torch import Tensor
from torch.nn import functional as F

from models.attribution.cells import average_cells
from models.attribution.forward import BATCH_SIZE, ForwardPass, predict_logits, score_function
from models.attribution.parameters import OcclusionParameters, RiseParameters
from models.attribution.targets import Target


def occlusion(forward: ForwardPass, targets: Sequence[Target], parameters: OcclusionParameters) -> Tensor:
    """Return signed maps (N, rows, cols) by Captum (Zeiler & Fergus 2014).

    A pixel's value is how much of the logit goes when a window is covered, averaged over the windows that
    cover the pixel.
    """
    maps = []
    window = min(parameters.window, *forward.x.shape[2:])
    stride = min(parameters.stride, window)
    for x, target in zip(forward.x, targets, strict=True):
        with torch.no_grad():
            drops = Occlusion(score_function(forward, target)).attribute(
                x[None],
                sliding_window_shapes=(x.shape[0], window, window),
                strides=(x.shape[0], stride, stride),
                perturbations_per_eval=BATCH_SIZE,
            )
        maps.append(drops[0].mean(0))
    return average_cells(torch.stack(maps).float(), parameters.cell)


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
