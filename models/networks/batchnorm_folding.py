"""BatchNorm folded into the convolution before it: the same function in a third less time, where nothing
trains.

In eval mode a BatchNorm is an affine map of each channel, and so is part of the convolution that feeds
it. The sums are formed in another order, so results agree to rounding, not to the bit.
"""

from __future__ import annotations

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from models.devices import CPU
from models.networks.transfer_model import TransferModel

_TOLERANCE = 1e-4
"""Of the largest value: a hundred times what rounding does, far below what a wrong fold would."""


def fold_batchnorm(module: nn.Module) -> nn.Module:
    """Return a copy in eval mode in which each BatchNorm that is defined right after a convolution is folded
    into it.
    """
    module = copy.deepcopy(module).eval()
    for parent in list(module.modules()):
        children = list(parent.named_children())
        for (name, conv), (after, norm) in pairwise(children):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                # In float64, so that each weight is rounded once.
                setattr(parent, name, fuse_conv_bn_eval(conv.double(), norm.double()).float())
                setattr(parent, after, nn.Identity())
    return module.requires_grad_(False).to(memory_format=torch.channels_last)


def inference_copy(model: TransferModel) -> TransferModel:
    """Return a folded copy of a model for inference and explanations; training the model does not touch it.

    Modules are defined in the order of their forward in every backbone of the table, but that is a
    custom, not a rule: blocks whose fold does not give the same values are kept as they are.
    """
    # Folded on the host, for not every device has float64.
    copied = copy.deepcopy(model).to(CPU).eval().requires_grad_(False)
    x = _random_batch(model)
    with torch.no_grad():
        for name in model.block_names:
            block, candidate = copied.block(name), fold_batchnorm(copied.block(name))
            expected = block(x)
            if _is_close(candidate(x), expected):
                copied.replace_block(name, candidate)
            x = expected
    return copied.to(memory_format=torch.channels_last).to(model.device)


def frozen_prefix(model: TransferModel, level: int) -> nn.Module:
    """Return the first ``level`` blocks, folded, as a module of its own; training the rest does not
    touch it.
    """
    blocks = nn.Sequential(*(copy.deepcopy(model.block(name)) for name in model.block_names[:level]))
    blocks = blocks.to(CPU).eval().requires_grad_(False)
    x = _random_batch(model)
    candidate = fold_batchnorm(blocks)
    with torch.no_grad():
        expected, output = blocks(x), candidate(x)
    prefix = candidate if _is_close(output, expected) else blocks
    return prefix.to(model.device)


def _random_batch(model: TransferModel) -> Tensor:
    geometry = model.geometry
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, geometry.crop_height, geometry.crop_width, generator=generator)
    return x.contiguous(memory_format=torch.channels_last)


def _is_close(output: Tensor, expected: Tensor) -> bool:
    return bool((output - expected).abs().max() <= _TOLERANCE * expected.abs().max().clamp(min=1.0))
