"""One forward pass for a prediction and all its explanations, safe to call from many threads at once.

The blocks up to the cut run without autograd, at the price of a prediction. What follows runs once with it;
each target then costs one backward through that rest. Captum's hook sits on an ``Identity`` made for this one
call: nothing is hooked on the shared model, so two requests never meet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from models.attribution.targets import Target
from models.backends.base import Backend
from models.backends.eager import EagerBackend
from models.cancellation import check_deadline
from models.devices import memory_errors, to_host
from models.errors import ExplanationError
from models.networks.transfer_model import TransferModel

BATCH_SIZE = 8
"""Images that the costly methods run at once."""


class ForwardPass:
    """A batch of images run once: their logits, and the map at a block to differentiate them by."""

    def __init__(self, backend: Backend, block: str, x: Tensor, value: Tensor) -> None:
        """Run what follows ``block`` on its ``value``, keeping the graph.

        Raises ExplanationError when the value should be a map and is none.
        """
        self.backend, self.model, self.block, self.x = backend, backend.model, block, x
        self.value = value
        """The block's output as the next block takes it."""
        layout = self.model.layout(block)
        self._map: Tensor | None = None
        if layout.name == "none":
            with torch.no_grad():
                self._logits: Tensor = self.model.after(block, value)
            return
        self._map = self.model.as_map(block, value).detach().requires_grad_()
        with torch.enable_grad(), memory_errors(len(x), "send fewer at once"):
            # Stopped at the Grad-CAM block, for those methods that read both.
            cam_block, last = self.model.cam_block, len(self.model.block_names)
            start, stop = (self.model.index_of(name) + 1 for name in (block, cam_block))
            self._upper = layout.from_map(self._map, value)
            if start < stop:
                self._upper = self.model.run_blocks(self._upper, start, stop)
            self._logits = self.model.head(self.model.run_blocks(self._upper, max(start, stop), last))

    @property
    def has_map(self) -> bool:
        """Whether the block passes a map on."""
        return self._map is not None

    @property
    def map(self) -> Tensor:
        """The block's output as a map (N, channels, rows, cols), a leaf of autograd; raises ExplanationError
        for a block that passes no map on.
        """
        if self._map is None:
            raise ExplanationError(
                f"Block {self.block!r} of {self.model.backbone.name} passes no map on, so nothing can be "
                "read there; a method that asks the pixels can explain this network."
            )
        return self._map

    @property
    def logits(self) -> Tensor:
        """Logits (N, classes), without autograd, in the host's memory."""
        return to_host(self._logits.detach())

    def run_again(self, grid: Tensor) -> Tensor:
        """Return logits (N, classes), with autograd, of the network above the block for another value of its
        map.
        """
        return self.model.after(self.block, self.model.layout(self.block).from_map(grid, self.value))

    def scores(self, targets: Sequence[Target]) -> Tensor:
        """Return the logit of one target for each image, (N,), with autograd, any number of times."""
        with torch.enable_grad():
            return torch.stack(
                [target.of(logits) for target, logits in zip(targets, self._logits, strict=True)]
            )

    def gradient(self, targets: Sequence[Target]) -> Tensor:
        """Return the gradient of each image's target logit by its map, (N, channels, rows, cols)."""
        with torch.enable_grad():
            total = self.scores(targets).sum()
        (gradient,) = torch.autograd.grad(total, self.map, retain_graph=True)
        return gradient

    def gradients_at_cam(self, targets: Sequence[Target]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the Grad-CAM block's map, and the gradients of each image's target logit by it and by the
        pass's own map, in one backward. At or above that block both are the pass's own.
        """
        model = self.model
        if model.index_of(self.block) >= model.index_of(model.cam_block):
            gradient = self.gradient(targets)
            return self.map.detach(), gradient, gradient
        own = self.map
        with torch.enable_grad():
            total = self.scores(targets).sum()
        upper, gradient = torch.autograd.grad(total, [self._upper, own], retain_graph=True)
        value, upper = (model.as_map(model.cam_block, item) for item in (self._upper.detach(), upper))
        return value, upper, gradient


class ScoreHead(nn.Module):
    """The rest of the network as Captum wants it: a module with a layer to hook that returns the scores.

    The forward has run already, so each call only hands out its result.
    """

    def __init__(self, forward: ForwardPass, targets: Sequence[Target]) -> None:
        super().__init__()
        self.cut = nn.Identity()
        self._scores = forward.scores(targets)

    def forward(self, grid: Tensor) -> Tensor:
        """Return the scores (N,) for the forward pass's own map (N, channels, rows, cols)."""
        self.cut(grid)
        return self._scores


def run_forward(
    model: TransferModel, x: Tensor, *, block: str | None = None, backend: Backend | None = None
) -> ForwardPass:
    """Run images (N, 3, H, W) once, ready to be explained at ``block``.

    With a ``backend`` its copy of the model is what runs and is explained; ``model`` itself otherwise.

    Raises UnknownChoice for an unknown block, and ExplanationError for one whose output is no map or an
    image of a size that the network cannot take.
    """
    check_deadline()
    backend = backend or EagerBackend(model)
    block = block or model.cam_block
    model.index_of(block)
    try:
        value = backend.until(block, x)
    except (RuntimeError, AssertionError) as error:
        geometry = model.geometry
        if tuple(x.shape[-2:]) != (geometry.crop_height, geometry.crop_width):
            raise ExplanationError(
                f"{model.backbone.name} was made for {geometry.crop_width} x {geometry.crop_height} pixels "
                f"and cannot take {x.shape[-1]} x {x.shape[-2]}: {str(error).splitlines()[0]}"
            ) from error
        raise
    forward = ForwardPass(backend, block, x, value)
    refined = backend.refine_low_margin(block, x, value, forward.logits)
    return forward if refined is None else ForwardPass(backend, block, x, refined)


def predict_logits(backend: Backend, x: Tensor) -> Tensor:
    """Return logits (N, classes) of images (N, 3, H, W), without autograd, in the host's memory."""
    return predict_with_value(backend, x)[0]


def predict_with_value(backend: Backend, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return logits as :func:`predict_logits` does, and the value of the Grad-CAM block that they came
    from.
    """
    check_deadline()
    model, block = backend.model, backend.model.cam_block
    with torch.no_grad():
        value = backend.until(block, x)
        logits = to_host(model.after(block, value))
        refined = backend.refine_low_margin(block, x, value, logits)
        if refined is None:
            return logits, value
        return to_host(model.after(block, refined)), refined


def score_function(forward: ForwardPass, target: Target) -> Callable[[Tensor], Tensor]:
    """Return a function from images (N, 3, H, W) to the target's logits (N,).

    It runs on the fast backend where no gradient is asked for.
    """

    def score(x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            check_deadline()
            return target.of(to_host(forward.model(x)))
        return target.of(predict_logits(forward.backend, x))

    return score
