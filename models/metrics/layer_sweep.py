"""One image explained at each stage of the network: edges at first, parts at last."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.attribution.forward import ForwardPass, run_forward
from models.attribution.registry import DEFAULT_METHOD, Method, attribute_each
from models.attribution.result import Attribution
from models.attribution.targets import Target
from models.backends.base import Backend
from models.metrics.faithfulness import FaithfulnessResult, measure_faithfulness
from models.networks.transfer_model import TransferModel

_BY_MEAN_GRADIENT = ("grad_cam", "grad_cam_plus_plus")
_CELL_BY_CELL = ("hires_cam", "layer_cam")


@dataclass(frozen=True, slots=True)
class SweepStage:
    """The map of one stage."""

    attribution: Attribution
    faithfulness: FaithfulnessResult | None
    """None where there is no map to judge."""


def stage_ends(model: TransferModel, x: Tensor) -> list[str]:
    """Return the last block of each spatial size, from the input up; of one size throughout, every third
    block; of no map, none.
    """
    sizes: dict[str, tuple[int, ...]] = {}
    with torch.no_grad():
        for name, value in model.walk(x[:1]):
            if name in model.blocks_with_map:
                sizes[name] = tuple(model.as_map(name, value).shape[2:])
    names = list(sizes)
    if not names:
        return []
    ends = [a for a, b in zip(names, [*names[1:], ""], strict=True) if sizes[a] != sizes.get(b)]
    if len(ends) < 3:
        ends = names[::-3][::-1]
    return sorted({*ends, model.cam_block} - _blocks_above_cam(model), key=model.index_of)


def find_fine_block(model: TransferModel) -> str:
    """Return the end of the stage before the last, with finer cells than the Grad-CAM block's; in a network
    of one size throughout a block some way below it, and that block itself where there is no other.
    """
    size = (model.geometry.crop_height, model.geometry.crop_width)
    ends = stage_ends(model, torch.zeros(1, 3, *size))
    return ends[-2] if len(ends) > 1 else model.cam_block


def find_usual_block(method: Method, model: TransferModel) -> str:
    """Return the block that a method reads where none is asked for."""
    if method.usual_block == "fine":
        return find_fine_block(model)
    first = next(iter(model.blocks_with_map), model.cam_block)
    return first if method.usual_block == "first" else model.cam_block


def forward_for(method: Method, forward: ForwardPass) -> ForwardPass:
    """Return the pass that a method reads where no block was asked for: one at its usual block, or the pass
    itself where that is the Grad-CAM block or another was asked for.
    """
    if method.usual_block == "grad_cam" or forward.block != forward.model.cam_block:
        return forward
    block = find_usual_block(method, forward.model)
    return run_forward(forward.model, forward.x, block=block, backend=forward.backend)


def _blocks_above_cam(model: TransferModel) -> set[str]:
    """Return blocks above the Grad-CAM block, which was chosen as the last that has something to say."""
    return set(model.block_names[model.index_of(model.cam_block) + 1 :])


def _method_below(method: str, disabled: Collection[str]) -> str:
    """Return the method for the stages below the Grad-CAM block."""
    if method not in _BY_MEAN_GRADIENT:
        return method
    return next((name for name in _CELL_BY_CELL if name not in disabled), method)


def sweep_layers(
    backend: Backend,
    x: Tensor,
    target: Target,
    *,
    method: str = DEFAULT_METHOD,
    disabled: Collection[str] = (),
    bank: np.ndarray | None = None,
    steps: int = 8,
    control_maps: int = 19,
) -> Iterator[SweepStage]:
    """Yield one image (3, H, W) explained at the end of each stage, each map with its faithfulness.

    Methods that weight channels by a mean gradient point at chance below the Grad-CAM block, where the layers
    above care about places; HiResCAM or LayerCAM, as far as they are not disabled, stand for them there.
    """
    for block in stage_ends(backend.model, x[None]):
        forward = run_forward(backend.model, x[None], block=block, backend=backend)
        own = method if block == backend.model.cam_block else _method_below(method, disabled)
        attribution = attribute_each(forward, [target], method=own)[0]
        result = (
            measure_faithfulness(backend, x, attribution, bank=bank, steps=steps, control_maps=control_maps)
            if attribution.status == "ok"
            else None
        )
        yield SweepStage(attribution, result)
