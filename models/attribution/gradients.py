"""Guided backpropagation (Springenberg et al. 2015): gradients in which no ReLU passes a negative one down.

Captum and its peers hook the ReLU modules of the shared model, so that two requests spoil each other, and
miss ReLUs that are called as functions, and ReLU6. Here the rule is put where the function is called, in the
calling thread only, and the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from captum.attr import IntegratedGradients
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.attribution.activation_functions import RELU, RELU6
from models.attribution.cam import grad_cam
from models.attribution.forward import ForwardPass, score_function
from models.attribution.perturbation import Effort
from models.attribution.targets import Target
from models.errors import ExplanationError
from models.networks.transfer_model import TransferModel

_UNGUIDED = (nn.SiLU, nn.GELU, nn.Hardswish)


class _GuidedClamp(torch.autograd.Function):
    """min(max(x, 0), top), whose backward passes a gradient only where it and the input are positive."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.top = top
        return x.clamp(0.0, top)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * ((x > 0) & (x < ctx.top)), None


class _GuidedBackpropagation(TorchFunctionMode):
    """While entered, this thread's ReLUs follow the rule."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in RELU:
            return _GuidedClamp.apply(args[0], float("inf"))
        if func in RELU6:
            return _GuidedClamp.apply(args[0], 6.0)
        return func(*args, **(kwargs or {}))


def guided_gradient(model: TransferModel, x: Tensor, targets: Sequence[Target]) -> Tensor:
    """Of each picture's target score by its pixels, (N, 3, H, W), under the guided rule.

    Raises ExplanationError for a network whose activations are not ReLUs: the rule is not defined there.
    """
    if odd := sorted({type(module).__name__ for module in model.modules() if isinstance(module, _UNGUIDED)}):
        raise ExplanationError(
            f"Guided backpropagation is defined by ReLUs; {model.row.name} has {', '.join(odd)}. "
            "Choose another method."
        )
    pixels = x.detach().clone().requires_grad_()
    with torch.enable_grad(), _GuidedBackpropagation():
        logits = model(pixels)
        score = torch.stack([target.of(row) for target, row in zip(targets, logits, strict=True)]).sum()
    found: Tensor = torch.autograd.grad(score, pixels)[0]
    return found


def guided_grad_cam(evidence: ForwardPass, targets: Sequence[Target]) -> Tensor:
    """Maps (N, H, W) of the input: the length of the guided gradient over the colours, within the positive
    part of Grad-CAM. They say where the score hangs on the pixels, not whether for or against.
    """
    cams = grad_cam(evidence, targets).clamp(min=0)
    size = (evidence.x.shape[2], evidence.x.shape[3])
    within = F.interpolate(cams[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return guided_gradient_norm(evidence, targets) * within


def guided_gradient_norm(evidence: ForwardPass, targets: Sequence[Target]) -> Tensor:
    """(N, H, W): how long the guided gradient is over the colours."""
    length: Tensor = guided_gradient(evidence.model, evidence.x, targets).norm(dim=1)
    return length


def integrated_gradients(evidence: ForwardPass, targets: Sequence[Target], effort: Effort) -> Tensor:
    """Signed maps (N, H, W), by Captum (Sundararajan et al. 2017), summed over the colours: shares of the
    logit's rise from the mean colour to the picture, which they add up to as the steps grow.
    """
    maps = []
    for x, target in zip(evidence.x, targets, strict=True):
        explainer = IntegratedGradients(score_function(evidence, target))
        with torch.enable_grad():
            found = explainer.attribute(
                x[None], n_steps=effort.steps, internal_batch_size=effort.batch, method="gausslegendre"
            )
        maps.append(found.detach()[0].sum(0))
    return torch.stack(maps).float()
