"""Methods that differentiate the score by the pixels: integrated gradients and Guided Grad-CAM.

Guided backpropagation (Springenberg et al. 2015) lets no ReLU pass a negative gradient down. Captum and its
peers hook the ReLU modules of the shared model, so that two requests spoil each other, and miss ReLU6 and
ReLUs that are called as functions. Here the rule is applied where the function is called, in the calling
thread only, and the model stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.attribution.activation_functions import RELU, RELU6
from models.attribution.cam import grad_cam
from models.attribution.cells import sum_cells
from models.attribution.forward import ForwardPass, score_function
from models.attribution.measured import MeasuredMaps
from models.attribution.parameters import GuidedGradCamParameters, IntegratedGradientsParameters
from models.attribution.path_integral import integrate_gradient
from models.attribution.targets import Target
from models.devices import to_host
from models.errors import ExplanationError
from models.networks.transfer_model import TransferModel

_UNGUIDED = (nn.SiLU, nn.GELU, nn.Hardswish)


class _GuidedClamp(torch.autograd.Function):
    """Clamp min(max(x, 0), top) whose backward passes a gradient only where it and the input are positive."""

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
    """Mode in which this thread's ReLUs follow the guided rule."""

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
    """Return the guided gradient of each image's target logit by its pixels, (N, 3, H, W).

    Raises ExplanationError for a network whose activations are not ReLUs: the rule is not defined there.
    """
    if odd := sorted({type(module).__name__ for module in model.modules() if isinstance(module, _UNGUIDED)}):
        raise ExplanationError(
            f"Guided backpropagation is defined by ReLUs; {model.backbone.name} has {', '.join(odd)}. "
            "Choose another method."
        )
    if model.backbone.is_exported:
        raise ExplanationError(
            f"{model.backbone.name} is an exported program, in which no ReLU can be told from other "
            "functions. Choose another method."
        )
    pixels = x.detach().clone().requires_grad_()
    with torch.enable_grad(), _GuidedBackpropagation():
        logits = to_host(model(pixels))
        score = torch.stack([target.of(item) for target, item in zip(targets, logits, strict=True)]).sum()
    gradient: Tensor = torch.autograd.grad(score, pixels)[0]
    return gradient


def guided_gradient_norm(forward: ForwardPass, targets: Sequence[Target]) -> Tensor:
    """Return the length of the guided gradient over the colours, (N, H, W)."""
    length: Tensor = guided_gradient(forward.model, forward.x, targets).norm(dim=1)
    return length


def guided_grad_cam(
    forward: ForwardPass, targets: Sequence[Target], parameters: GuidedGradCamParameters
) -> Tensor:
    """Return maps (N, rows, cols): the guided gradient's length within the positive part of Grad-CAM.

    They show where the score depends on the pixels, not whether a pixel counts for or against the target.
    """
    cams = to_host(grad_cam(forward, targets)).clamp(min=0)
    size = (forward.x.shape[2], forward.x.shape[3])
    region = F.interpolate(cams[:, None], size, mode="bilinear", align_corners=False)[:, 0]
    return sum_cells(guided_gradient_norm(forward, targets) * region, parameters.cell)


def integrated_gradients(
    forward: ForwardPass, targets: Sequence[Target], parameters: IntegratedGradientsParameters
) -> MeasuredMaps:
    """Return signed maps (N, rows, cols), summed over the colours (Sundararajan et al. 2017), with the rise
    of the logit that each shares out, the residual and the steps it took.

    The path begins at the mean colour of the preprocessing. The cells are shares of the logit's rise from
    there to the image; the residual is the part of it that they do not add up to.
    """
    results = [
        integrate_gradient(
            score_function(forward, target), x, steps=parameters.steps,
            most_steps=max(parameters.steps, parameters.most_steps),
        )
        for x, target in zip(forward.x, targets, strict=True)
    ]  # fmt: skip
    maps = torch.stack([result.shares for result in results]).float()
    facts = [{"steps": result.steps, "rise": result.rise, "residual": result.residual} for result in results]
    return MeasuredMaps(sum_cells(maps, parameters.cell), facts)
