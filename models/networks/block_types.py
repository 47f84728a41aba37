"""The table of block types: what kind each is, its tags, and the parts whose sum or concatenation it gives.

The network summary takes the tags from here, the decomposition of evidence the parts. To have a new type of
block tagged or taken apart, add a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models.convnext import CNBlock
from torchvision.models.densenet import _DenseBlock
from torchvision.models.efficientnet import FusedMBConv, MBConv
from torchvision.models.googlenet import Inception
from torchvision.models.inception import InceptionA, InceptionB, InceptionC, InceptionD, InceptionE
from torchvision.models.mobilenetv2 import InvertedResidual
from torchvision.models.mobilenetv3 import InvertedResidual as InvertedResidualV3
from torchvision.models.regnet import ResBottleneckBlock
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.squeezenet import Fire
from torchvision.models.swin_transformer import ShiftedWindowAttention, SwinTransformerBlock
from torchvision.models.vision_transformer import EncoderBlock
from torchvision.ops.misc import SqueezeExcitation

from models.networks.efficientnet_lite0 import MBConvLite

Kind = Literal["inception", "residual", "part"]
"""Branches side by side, a skip beside a branch, or something found within a block."""
Branches = Callable[[Any, Tensor], list[tuple[str, Tensor]]]
"""(block, its input) to (name, output) of each branch, in the order of their channels."""


@dataclass(frozen=True, slots=True)
class BlockType:
    """An entry of the table: a module class and what is known of it."""

    module: type[nn.Module]
    kind: Kind
    tags: tuple[str, ...]
    branches: Branches | None = None
    """Of an inception block."""
    skip: Callable[[Any, Tensor], Tensor] | None = None
    """Of a residual block: (block, its input) to what passes by the branch."""
    branch_before_relu: Callable[[Any, Tensor], Tensor] | None = None
    """Of a residual block whose sum passes through a ReLU: (block, its input) to the branch's output."""

    def has_skip(self, block: Any) -> bool:
        """Return whether this very block adds its skip: some types do only where shapes allow it."""
        uses_skip = getattr(block, "use_res_connect", getattr(block, "skip", True))
        return self.skip is not None and bool(uses_skip)


def _identity(block: Any, x: Tensor) -> Tensor:
    return x


def _downsample(block: Any, x: Tensor) -> Tensor:
    skip: Tensor = x if block.downsample is None else block.downsample(x)
    return skip


def _project(block: Any, x: Tensor) -> Tensor:
    skip: Tensor = x if block.proj is None else block.proj(x)
    return skip


def _basic_branch(block: Any, x: Tensor) -> Tensor:
    branch: Tensor = block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x)))))
    return branch


def _bottleneck_branch(block: Any, x: Tensor) -> Tensor:
    inner = torch.relu(block.bn2(block.conv2(torch.relu(block.bn1(block.conv1(x))))))
    branch: Tensor = block.bn3(block.conv3(inner))
    return branch


def _regnet_branch(block: Any, x: Tensor) -> Tensor:
    branch: Tensor = block.f(x)
    return branch


def _named(*names: str) -> Branches:
    return lambda block, x: list(zip(names, block._forward(x), strict=True))


def _fire_branches(block: Any, x: Tensor) -> list[tuple[str, Tensor]]:
    squeezed = block.squeeze_activation(block.squeeze(x))
    return [
        ("1x1", block.expand1x1_activation(block.expand1x1(squeezed))),
        ("3x3", block.expand3x3_activation(block.expand3x3(squeezed))),
    ]


def _residual(module: type[nn.Module], *tags: str) -> BlockType:
    return BlockType(module, "residual", tags, skip=_identity)


def _inception(module: type[nn.Module], *names: str) -> BlockType:
    return BlockType(module, "inception", ("inception",), branches=_named(*names))


BLOCK_TYPES: tuple[BlockType, ...] = (
    BlockType(BasicBlock, "residual", ("residual",), skip=_downsample, branch_before_relu=_basic_branch),
    BlockType(
        Bottleneck, "residual", ("residual", "bottleneck"), skip=_downsample,
        branch_before_relu=_bottleneck_branch,
    ),
    BlockType(
        ResBottleneckBlock, "residual", ("residual", "bottleneck"), skip=_project,
        branch_before_relu=_regnet_branch,
    ),
    _residual(CNBlock, "residual", "inverted bottleneck"),
    _residual(EncoderBlock, "residual"),
    _residual(SwinTransformerBlock, "residual"),
    _residual(InvertedResidual, "inverted bottleneck"),
    _residual(InvertedResidualV3, "inverted bottleneck"),
    _residual(MBConv, "inverted bottleneck"),
    _residual(FusedMBConv, "inverted bottleneck"),
    _residual(MBConvLite, "inverted bottleneck"),
    # What torchvision calls the 5x5 branch has a 3x3 kernel, as its weights were trained with.
    _inception(Inception, "1x1", "1x1, 3x3", "1x1, second 3x3", "pool, 1x1"),
    _inception(InceptionA, "1x1", "1x1, 5x5", "1x1, 3x3, 3x3", "pool, 1x1"),
    _inception(InceptionB, "3x3", "1x1, 3x3, 3x3", "pool"),
    _inception(InceptionC, "1x1", "1x1, 1x7, 7x1", "1x1, twice 7x1, 1x7", "pool, 1x1"),
    _inception(InceptionD, "1x1, 3x3", "1x1, 1x7, 7x1, 3x3", "pool"),
    _inception(InceptionE, "1x1", "1x1, 1x3 and 3x1", "1x1, 3x3, 1x3 and 3x1", "pool, 1x1"),
    BlockType(Fire, "inception", ("inception",), branches=_fire_branches),
    BlockType(_DenseBlock, "part", ("dense",)),
    BlockType(SqueezeExcitation, "part", ("squeeze-and-excitation",)),
    BlockType(nn.MultiheadAttention, "part", ("attention",)),
    BlockType(ShiftedWindowAttention, "part", ("attention",)),
)  # fmt: skip

TAGS = (
    "residual", "bottleneck", "inverted bottleneck", "inception", "dense", "squeeze-and-excitation",
    "attention",
)  # fmt: skip
"""In the order in which a summary names them."""


def block_type(module: nn.Module) -> BlockType | None:
    """Return the row of a module's own class; None where there is none."""
    return next((row for row in BLOCK_TYPES if row.module is type(module)), None)


def tags_of(block: nn.Module) -> tuple[str, ...]:
    """Return the tags of a block and of all modules within it."""
    tags: set[str] = set()
    for module in block.modules():
        for row in BLOCK_TYPES:
            if isinstance(module, row.module):
                tags.update(row.tags)
                if row.skip is _identity and row.has_skip(module):
                    tags.add("residual")
    return tuple(tag for tag in TAGS if tag in tags)
