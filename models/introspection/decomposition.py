"""Which part of a block the evidence comes through: an inception block's branches, a residual block's skip
against its branch.

Both are sums. An inception block puts its branches' channels side by side, and Grad-CAM adds up over
channels. A residual block gives x + f(x), through a ReLU in ResNets: where that lets a value pass, it is the
sum, and where it does not, there is nothing to split. So the parts' maps add up to the block's map exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock
from torchvision.models.efficientnet import FusedMBConv, MBConv
from torchvision.models.googlenet import Inception
from torchvision.models.inception import InceptionA, InceptionB, InceptionC, InceptionD, InceptionE
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
from torchvision.models.regnet import ResBottleneckBlock
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.squeezenet import Fire
from torchvision.models.swin_transformer import SwinTransformerBlock
from torchvision.models.vision_transformer import EncoderBlock

from models.attribution.forward import ForwardPass
from models.attribution.targets import Target
from models.backends.base import Backend
from models.backends.eager import EagerBackend
from models.errors import ExplanationError
from models.networks.efficientnet_lite0 import MBConvLite
from models.networks.transfer_model import TransferModel


@dataclass(frozen=True, slots=True)
class DecompositionPart:
    """What came through one branch, or past it."""

    name: str
    channels: int
    """Of the block's output that it writes; a residual block's parts write all of them."""
    values: np.ndarray = field(repr=False)
    """Signed map, float32 (rows, cols), in units of the logit; the parts' maps add up to the block's."""
    without: float
    """The target's logit when this part is cut off; the other parts stay."""

    @property
    def total(self) -> float:
        """Sum of the map."""
        return float(self.values.sum())


@dataclass(frozen=True, slots=True)
class Decomposition:
    """Of one picture, target and block."""

    target: Target
    block: str
    kind: str
    """inception or residual."""
    logit: float
    """The target's, with nothing cut off."""
    parts: tuple[DecompositionPart, ...]


def decompose(
    model: TransferModel, x: Tensor, target: Target, block: str, *, backend: Backend | None = None
) -> Decomposition:
    """Split the Grad-CAM evidence of one picture (3, H, W) at a block by its parts.

    Raises UnknownChoice for an unknown block, and ExplanationError for one that has no parts: the blocks that
    have are named.
    """
    backend = backend or EagerBackend(model)
    model = backend.model
    opening, module = _split_opening(model.block(block))
    below = model.index_of(block)
    with torch.no_grad():
        entering = opening(model.run_blocks(x[None], 0, below))
        value = module(entering)
    forward = ForwardPass(backend, block, x[None], value)
    weights = forward.gradient([target]).mean(dim=(2, 3), keepdim=True)
    if isinstance(module, _INCEPTION):
        kind = "inception"
        pieces: Sequence[Piece] = _branches(module, entering, value)
    elif (skip := _skip_of(module, entering)) is not None:
        kind, pieces = "residual", _residual(model, block, module, entering, skip, value)
    else:
        able = [name for name in model.block_names if has_parts(model, name)]
        raise ExplanationError(
            f"Block {block!r} has neither branches nor a skip; choose one of: {', '.join(able) or 'none'}."
        )
    parts = []
    for name, written, own, rest in pieces:
        grid = (weights * model.as_map(block, own)).sum(1)[0]
        with torch.no_grad():
            without = float(target.of(model.after(block, rest))[0])
        parts.append(DecompositionPart(name, written, grid.float().cpu().numpy(), without))
    return Decomposition(target, block, kind, float(target.of(forward.logits)[0]), tuple(parts))


def has_parts(model: TransferModel, block: str) -> bool:
    """Whether :func:`split` works at that block."""
    _, module = _split_opening(model.block(block))
    return isinstance(module, _INCEPTION) or _adds(module)


def last_block_with_parts(model: TransferModel) -> str:
    """The highest block that :func:`split` works at; the Grad-CAM block where there is none."""
    able = [name for name in model.block_names if has_parts(model, name)]
    return able[-1] if able else model.cam_block


def _split_opening(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """What opens a block, and the block proper; a last LayerNorm makes a block one without parts."""
    if isinstance(block, nn.Sequential) and len(block) == 2 and not isinstance(block[1], nn.LayerNorm):
        return block[0], block[1]
    return nn.Identity(), block


# ---------------------------------------------------------------- inception

_INCEPTION = (
    Inception,
    InceptionA,
    InceptionB,
    InceptionC,
    InceptionD,
    InceptionE,
    Fire,
)

Piece = tuple[str, int, Tensor, Tensor]
"""(name, channels, the block's value with only this part, the value without it)."""


def _branches(module: nn.Module, entering: Tensor, value: Tensor) -> list[Piece]:
    with torch.no_grad():
        named = _branch_outputs(module, entering)
    pieces = []
    start = 0
    for name, output in named:
        own, rest = torch.zeros_like(value), value.clone()
        own[:, start : start + output.shape[1]] = value[:, start : start + output.shape[1]]
        rest[:, start : start + output.shape[1]] = 0.0
        start += output.shape[1]
        pieces.append((name, output.shape[1], own, rest))
    return pieces


def _branch_outputs(module: Any, x: Tensor) -> list[tuple[str, Tensor]]:
    if isinstance(module, Inception):
        return list(zip(_GOOGLENET, module._forward(x), strict=True))
    if isinstance(module, Fire):
        squeezed = module.squeeze_activation(module.squeeze(x))
        return [
            ("1x1", module.expand1x1_activation(module.expand1x1(squeezed))),
            ("3x3", module.expand3x3_activation(module.expand3x3(squeezed))),
        ]
    names = _INCEPTION_V3[type(module)]
    return list(zip(names, module._forward(x), strict=True))


# What torchvision calls the 5x5 branch has a 3x3 kernel, as its weights were trained with.
_GOOGLENET = ("1x1", "1x1, 3x3", "1x1, second 3x3", "pool, 1x1")
_INCEPTION_V3: dict[type[nn.Module], tuple[str, ...]] = {
    InceptionA: ("1x1", "1x1, 5x5", "1x1, 3x3, 3x3", "pool, 1x1"),
    InceptionB: ("3x3", "1x1, 3x3, 3x3", "pool"),
    InceptionC: ("1x1", "1x1, 1x7, 7x1", "1x1, twice 7x1, 1x7", "pool, 1x1"),
    InceptionD: ("1x1, 3x3", "1x1, 1x7, 7x1, 3x3", "pool"),
    InceptionE: ("1x1", "1x1, 1x3 and 3x1", "1x1, 3x3, 1x3 and 3x1", "pool, 1x1"),
}


# ---------------------------------------------------------------- residual

_THROUGH_RELU = (BasicBlock, Bottleneck, ResBottleneckBlock)

_SKIPS: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    BasicBlock: lambda block, x: x if block.downsample is None else block.downsample(x),
    Bottleneck: lambda block, x: x if block.downsample is None else block.downsample(x),
    ResBottleneckBlock: lambda block, x: x if block.proj is None else block.proj(x),
    CNBlock: lambda block, x: x,
    EncoderBlock: lambda block, x: x,
    SwinTransformerBlock: lambda block, x: x,
    MBConv: lambda block, x: x,
    FusedMBConv: lambda block, x: x,
    InvertedResidual: lambda block, x: x,
    InvertedResidualV3: lambda block, x: x,
    MBConvLite: lambda block, x: x,
}


def _adds(module: Any) -> bool:
    if type(module) not in _SKIPS:
        return False
    return bool(getattr(module, "use_res_connect", getattr(module, "skip", True)))


def _skip_of(module: nn.Module, entering: Tensor) -> Tensor | None:
    if not _adds(module):
        return None
    with torch.no_grad():
        return _SKIPS[type(module)](module, entering)


def _residual(
    model: TransferModel, block: str, module: nn.Module, entering: Tensor, skip: Tensor, value: Tensor
) -> Sequence[Piece]:
    channels = model.as_map(block, value).shape[1]
    if not isinstance(module, _THROUGH_RELU):
        branch = value - skip
        return [("skip", channels, skip, branch), ("branch", channels, branch, skip)]
    passed = value > 0
    skipped = torch.where(passed, skip, torch.zeros_like(skip))
    through = torch.where(passed, value - skip, torch.zeros_like(skip))
    # Cut off for good, the other part goes through the ReLU alone; where the sum was stopped there, what the
    # branch gave cannot be told from it, so the branch is run.
    with torch.no_grad():
        branch = _BRANCHES[type(module)](module, entering)
    return [
        ("skip", channels, skipped, branch.clamp(min=0)),
        ("branch", channels, through, skip.clamp(min=0)),
    ]


def _basic(block: Any, x: Tensor) -> Tensor:
    inner: Tensor = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    return inner


def _bottleneck(block: Any, x: Tensor) -> Tensor:
    inner = torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))))
    last: Tensor = block.bn3(block.conv3(inner))
    return last


_BRANCHES: dict[type[nn.Module], Callable[[Any, Tensor], Tensor]] = {
    BasicBlock: _basic,
    Bottleneck: _bottleneck,
    ResBottleneckBlock: lambda block, x: block.f(x),
}
