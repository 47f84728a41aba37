"""Grad-CAM and its kin: maps read from one block's output and the gradient of a target's score there.

With A the block's output, (channels, rows, cols), and g the gradient of the target's logit by it:

- Grad-CAM (Selvaraju et al. 2017): sum over channels of mean(g_c) A_c, the mean over the positions;
- HiResCAM (Draelos & Carin 2020): sum over channels of g_c A_c;
- LayerCAM (Jiang et al. 2021): sum over channels of max(g_c, 0) A_c;
- Grad-CAM++ (Chattopadhyay et al. 2018): sum over channels of w_c A_c, where w_c is the sum over the
  positions of a_c max(g_c, 0) with a_c = g_c^2 / (2 g_c^2 + g_c^3 sum(A_c)) = 1 / (2 + g_c sum(A_c)). It
  was derived for A >= 0, as after a ReLU, where a_c is at most 1/2. Elsewhere the sum may be negative and
  the denominator pass through zero, so only the positive part of A is summed; such a map has a caution.

The sign is kept (no ReLU at the end): the positive part is what an overlay shows, the raw range tells its
strength.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from captum.attr import LayerGradCam, LayerGradientXActivation
from torch import Tensor

from models.attribution.forward import ForwardPass, ScoreHead
from models.attribution.measured import MeasuredMaps
from models.attribution.targets import Target
from models.devices import to_host
from models.errors import ExplanationError

_RETAIN_GRAPH = {"retain_graph": True}
"""The tail's graph serves several targets."""


def grad_cam(forward: ForwardPass, targets: Sequence[Target]) -> Tensor:
    """Return signed maps (N, rows, cols), one target an image, by Captum's LayerGradCam."""
    tail = ScoreHead(forward, targets)
    with torch.enable_grad():
        maps = LayerGradCam(tail, tail.cut).attribute(
            forward.map, relu_attributions=False, grad_kwargs=_RETAIN_GRAPH
        )
    return _single_tensor(maps)[:, 0]


def hires_cam(forward: ForwardPass, targets: Sequence[Target]) -> Tensor:
    """Return signed maps (N, rows, cols), by Captum's LayerGradientXActivation summed over the channels."""
    tail = ScoreHead(forward, targets)
    with torch.enable_grad():
        products = LayerGradientXActivation(tail, tail.cut, multiply_by_inputs=True).attribute(
            forward.map, grad_kwargs=_RETAIN_GRAPH
        )
    return _single_tensor(products).sum(1)


def layer_cam(forward: ForwardPass, targets: Sequence[Target]) -> Tensor:
    """Return maps (N, rows, cols); what speaks against the target is left out by the method itself."""
    return (forward.gradient(targets).clamp(min=0) * forward.map.detach()).sum(1)


def grad_cam_plus_plus(forward: ForwardPass, targets: Sequence[Target]) -> MeasuredMaps:
    """Return maps (N, rows, cols), with the share of each one's activation that is negative."""
    gradient, activation = forward.gradient(targets).clamp(min=0), forward.map.detach()
    total = activation.clamp(min=0).sum(dim=(2, 3), keepdim=True)
    weights = (gradient / (2 + gradient * total)).sum(dim=(2, 3), keepdim=True)
    negative = activation.clamp(max=0).abs().sum(dim=(1, 2, 3)) / activation.abs().sum(dim=(1, 2, 3))
    facts = [{"negative_activation": share} for share in to_host(negative.nan_to_num()).tolist()]
    return MeasuredMaps((weights * activation).sum(1), facts)


def _single_tensor(attributions: Tensor | tuple[Tensor, ...]) -> Tensor:
    if not isinstance(attributions, Tensor):
        raise ExplanationError("Captum gave no single map for this block.")
    return attributions.detach()
