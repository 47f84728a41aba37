"""Which part of a block the evidence comes through: an inception block's branches, a residual block's skip
against its branch.

Both are sums. An inception block puts its branches' channels side by side, and Grad-CAM adds up over
channels. A residual block gives x + f(x), through a ReLU in ResNets: where that lets a value pass, it is the
sum, and where it does not, there is nothing to split. So the parts' maps add up to the block's map exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from models.attribution.forward import ForwardPass
from models.attribution.targets import Target
from models.backends.base import Backend
from models.backends.eager import EagerBackend
from models.devices import to_numpy
from models.errors import ExplanationError
from models.networks.block_types import BlockType, block_type
from models.networks.transfer_model import TransferModel


@dataclass(frozen=True, slots=True)
class DecompositionPart:
    """The share of the evidence that came through one branch, or past it."""

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
    """The evidence of one image, target and block by the parts of the block."""

    target: Target
    block: str
    kind: str
    """inception or residual."""
    logit: float
    """The target's, with nothing cut off."""
    parts: tuple[DecompositionPart, ...]


Piece = tuple[str, int, Tensor, Tensor]
"""(name, channels, the block's value with only this part, the value without it)."""


def decompose(
    model: TransferModel, x: Tensor, target: Target, block: str, *, backend: Backend | None = None
) -> Decomposition:
    """Split the Grad-CAM evidence of one image (3, H, W) at a block by its parts.

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
    spec = block_type(module)
    if spec is None or not _has_parts(spec, module):
        able = [name for name in model.block_names if has_parts(model, name)]
        raise ExplanationError(
            f"Block {block!r} has neither branches nor a skip; choose one of: {', '.join(able) or 'none'}."
        )
    pieces = _pieces(spec, module, entering, value, model.as_map(block, value).shape[1])
    forward = ForwardPass(backend, block, x[None], value)
    weights = forward.gradient([target]).mean(dim=(2, 3), keepdim=True)
    parts = []
    for name, channels, own, rest in pieces:
        grid = (weights * model.as_map(block, own)).sum(1)[0]
        with torch.no_grad():
            without = float(target.of(model.after(block, rest))[0])
        parts.append(DecompositionPart(name, channels, to_numpy(grid), without))
    return Decomposition(target, block, spec.kind, float(target.of(forward.logits)[0]), tuple(parts))


def has_parts(model: TransferModel, block: str) -> bool:
    """Return whether :func:`decompose` works at that block."""
    _, module = _split_opening(model.block(block))
    spec = block_type(module)
    return spec is not None and _has_parts(spec, module)


def last_block_with_parts(model: TransferModel) -> str:
    """Return the highest block that :func:`decompose` works at; the Grad-CAM block where there is none."""
    able = [name for name in model.block_names if has_parts(model, name)]
    return able[-1] if able else model.cam_block


def _has_parts(spec: BlockType, module: nn.Module) -> bool:
    return spec.branches is not None or spec.has_skip(module)


def _split_opening(block: nn.Module) -> tuple[nn.Module, nn.Module]:
    """Return what opens a block, and the block proper; a last LayerNorm makes a block one without parts."""
    if isinstance(block, nn.Sequential) and len(block) == 2 and not isinstance(block[1], nn.LayerNorm):
        return block[0], block[1]
    return nn.Identity(), block


def _pieces(
    spec: BlockType, module: nn.Module, entering: Tensor, value: Tensor, channels: int
) -> Sequence[Piece]:
    with torch.no_grad():
        if spec.branches is not None:
            return _inception_pieces(spec.branches(module, entering), value)
        assert spec.skip is not None
        skip = spec.skip(module, entering)
        if spec.branch_before_relu is None:
            branch = value - skip
            return [("skip", channels, skip, branch), ("branch", channels, branch, skip)]
        # Cut off for good, the other part goes through the ReLU alone; where the sum was stopped there, what
        # the branch gave cannot be told from it, so the branch is run.
        branch = spec.branch_before_relu(module, entering)
    passed = value > 0
    own_skip = torch.where(passed, skip, torch.zeros_like(skip))
    own_branch = torch.where(passed, value - skip, torch.zeros_like(skip))
    return [
        ("skip", channels, own_skip, branch.clamp(min=0)),
        ("branch", channels, own_branch, skip.clamp(min=0)),
    ]


def _inception_pieces(branches: Sequence[tuple[str, Tensor]], value: Tensor) -> list[Piece]:
    pieces = []
    start = 0
    for name, output in branches:
        channels = slice(start, start + output.shape[1])
        own, rest = torch.zeros_like(value), value.clone()
        own[:, channels] = value[:, channels]
        rest[:, channels] = 0.0
        pieces.append((name, output.shape[1], own, rest))
        start += output.shape[1]
    return pieces
