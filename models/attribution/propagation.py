"""Grad-CAM's evidence laid out over the finer cells of a lower block, by the likeness of their features.

The last block knows best which region is of the class, and has the largest cells; a lower block has finer
ones, whose own gradients say little. So two views of the evidence are carried down: Grad-CAM's positive part
C of the last block, and C times HiResCAM's positive part at the lower block, each at most 1. With f the lower
block's features less their mean over the cells, each view w has a prototype, the sum of w f over the cells,
and gives a cell w plus the cosine of its f with the prototype. The sum of both, where positive, shares
Grad-CAM's positive evidence out anew.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.attribution.forward import ForwardPass
from models.attribution.targets import Target
from models.devices import to_device

_TINY = 1e-12


def propagated_cam(forward: ForwardPass, targets: Sequence[Target]) -> Tensor:
    """Return maps (N, rows, cols) in the cells of the pass's block, one target an image.

    A map has what speaks for its target; of a contrast, less what speaks for the class held against it. One
    without positive evidence is Grad-CAM's own, resized.
    """
    upper, upper_gradient, gradient = forward.gradients_at_cam(targets)
    cam = (upper_gradient.mean((2, 3), keepdim=True) * upper).sum(1)
    own = forward.map.detach()
    hires = (gradient * own).sum(1)
    laid = _lay_out(cam, hires, own)
    contrasts = [target.against is not None for target in targets]
    contrast = to_device(torch.tensor(contrasts), laid.device)
    if any(contrasts):
        laid = torch.where(contrast[:, None, None], laid - _lay_out(-cam, -hires, own), laid)
    nothing = (cam <= 0).all(2).all(1) & ~contrast
    return torch.where(nothing[:, None, None], _resize(cam, own.shape[2:]), laid)


def _lay_out(cam: Tensor, hires: Tensor, features: Tensor) -> Tensor:
    """Return the positive evidence of ``cam`` (N, h, w) over the cells of ``features`` (N, C, rows, cols)."""
    coarse = _scaled(_resize(cam.clamp(min=0), features.shape[2:]))
    within = _scaled(coarse * hires.clamp(min=0))
    centred = features - features.mean((2, 3), keepdim=True)
    shares = sum((view + _likeness(centred, view) for view in (coarse, within)), torch.zeros_like(coarse))
    shares = shares.clamp(min=0)
    evidence = cam.clamp(min=0).sum((1, 2), keepdim=True)
    return shares * evidence / shares.sum((1, 2), keepdim=True).clamp(min=_TINY)


def _likeness(centred: Tensor, weights: Tensor) -> Tensor:
    """Return the cosine (N, rows, cols) of each cell's features with their weighted sum."""
    prototype = (centred * weights[:, None]).sum((2, 3), keepdim=True)
    return F.cosine_similarity(centred, prototype, dim=1)


def _resize(maps: Tensor, size: torch.Size) -> Tensor:
    return F.interpolate(maps[:, None], size=tuple(size), mode="bilinear", align_corners=False)[:, 0]


def _scaled(maps: Tensor) -> Tensor:
    """Return maps of values from 0, each at most 1."""
    return maps / maps.amax((1, 2), keepdim=True).clamp(min=_TINY)
