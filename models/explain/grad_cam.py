"""Grad-CAM (Selvaraju et al. 2017) on a model cut into blocks, safe to call from many threads at once.

The blocks up to the cut run once without autograd, at the price of a prediction. Captum differentiates only
the rest, on an ``Identity`` made for this one call: nothing is hooked on the shared model, so two requests
never meet.

Map = sum over channels of alpha_c A_c, with alpha_c the mean over the block's positions of d(logit) / d(A_c).
The sign is kept (no ReLU here): the positive part is what an overlay shows, the raw range tells its strength.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from captum.attr import LayerGradCam
from torch import Tensor, nn

from models.engines import EagerPrefix, Prefix
from models.errors import ExplanationError, UnknownChoice
from models.explain.attribution import Attribution, classify
from models.transfer import TransferModel

METHOD = "grad_cam"


class _Rest(nn.Module):
    """What follows a cut, with a place of its own for Captum's hook; shares the model's weights, owns
    none.
    """

    def __init__(self, model: TransferModel, block: str) -> None:
        super().__init__()
        self.cut = nn.Identity()
        # In a tuple, so that torch does not register the model as a child of this request's module.
        self._model = (model,)
        self._block = block

    def forward(self, activation: Tensor) -> Tensor:
        return self._model[0].after(self._block, self.cut(activation))


@dataclass(frozen=True, slots=True)
class Evidence:
    """A batch run up to the cut, and its logits; maps for any classes can be asked of it."""

    block: str
    activation: Tensor
    """Output of the block, (N, C, rows, cols)."""
    logits: Tensor
    """(N, classes), without autograd."""


def look(
    model: TransferModel, x: Tensor, *, block: str | None = None, prefix: Prefix | None = None
) -> Evidence:
    """Run a batch (N, 3, H, W) once, without autograd, and keep the block's output.

    ``prefix`` runs the blocks instead of torch where it was made for this block.

    Raises UnknownChoice for an unknown block and ExplanationError for one whose output is no map.
    """
    block = block or model.cam_block
    model.index_of(block)
    with torch.no_grad():
        run = prefix if prefix is not None and prefix.block == block else EagerPrefix(model, block)
        activation = run(x)
        logits = model.after(block, activation)
    if activation.ndim != 4 or activation.shape[-1] * activation.shape[-2] < 2:
        raise ExplanationError(
            f"Block {block!r} gives {tuple(activation.shape[1:])}, which is no map (channels, rows, cols)."
        )
    return Evidence(block=block, activation=activation, logits=logits)


def grad_cam(
    model: TransferModel, evidence: Evidence, item: int, targets: Sequence[int]
) -> list[Attribution]:
    """Grad-CAM maps of one picture of the batch, one for each target class index, in one backward pass.

    Raises UnknownChoice for a class outside the model's.
    """
    for target in targets:
        if not 0 <= target < len(model.classes):
            raise UnknownChoice("class index", target, range(len(model.classes)))
    if not targets:
        return []
    one = evidence.activation[item : item + 1].detach()
    batch = one.expand(len(targets), *one.shape[1:]).contiguous().requires_grad_()
    maps = _signed_maps(_Rest(model, evidence.block), batch, list(targets))
    return [
        _attribution(model, evidence.block, target, values)
        for target, values in zip(targets, maps, strict=True)
    ]


def grad_cam_batch(model: TransferModel, evidence: Evidence, targets: Sequence[int]) -> list[Attribution]:
    """One map for each picture of the batch, for its own target class."""
    if len(targets) != len(evidence.activation):
        raise ValueError(f"{len(targets)} targets for {len(evidence.activation)} pictures.")
    batch = evidence.activation.detach().clone().requires_grad_()
    maps = _signed_maps(_Rest(model, evidence.block), batch, list(targets))
    return [
        _attribution(model, evidence.block, target, values)
        for target, values in zip(targets, maps, strict=True)
    ]


def _signed_maps(rest: _Rest, batch: Tensor, targets: list[int]) -> Tensor:
    """(N, C, rows, cols) to signed maps (N, rows, cols)."""
    with torch.enable_grad():
        maps = LayerGradCam(rest, rest.cut).attribute(batch, target=targets, relu_attributions=False)
    if not isinstance(maps, Tensor):
        raise ExplanationError("Captum gave no single map for this block.")
    return maps.detach()[:, 0].float().cpu()


def _attribution(model: TransferModel, block: str, target: int, values: Tensor) -> Attribution:
    status, shown = classify(values.numpy())
    return Attribution(
        label=model.classes[target], index=target, method=METHOD, block=block, status=status, values=shown
    )
