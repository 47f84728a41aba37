"""What each block answered: statistics and the strongest channels, from one forward and without a hook."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from models.devices import to_host, to_numpy
from models.errors import UnknownChoice
from models.networks.transfer_model import TransferModel


@dataclass(frozen=True, slots=True)
class ChannelActivation:
    """Statistics of one channel of a block's output."""

    index: int
    mean: float
    """Mean over the positions; channels are ranked by it."""
    maximum: float
    values: np.ndarray = field(repr=False)
    """float32 (rows, cols)."""


@dataclass(frozen=True, slots=True)
class BlockActivation:
    """A block's output for one image."""

    block: str
    shape: tuple[int, ...]
    """(channels, rows, cols)."""
    mean: float
    std: float
    minimum: float
    maximum: float
    zero_share: float
    """Share of values that are exactly 0, as ReLU leaves them."""
    strongest: tuple[ChannelActivation, ...]
    """Channels of the highest mean, strongest first."""


def collect_activations(
    model: TransferModel, x: Tensor, *, blocks: Sequence[str], channels: int = 8
) -> list[BlockActivation]:
    """Return outputs of the named blocks for one image (1, 3, H, W), in the model's order, each block once.

    Raises UnknownChoice for a block that the model does not have, ExplanationError for one that gives no map.
    """
    for block in blocks:
        if block not in model.block_names:
            raise UnknownChoice("block", block, model.block_names)
    with torch.no_grad():
        return [
            _describe(name, model.as_map(name, value)[0], channels)
            for name, value in model.walk(x)
            if name in blocks
        ]


def _describe(block: str, value: Tensor, channels: int) -> BlockActivation:
    """Describe a value (channels, rows, cols); what is kept is copied, so that the memory of the forward is
    freed.
    """
    value = to_host(value).float()
    means = value.mean(dim=(1, 2))
    strongest = torch.argsort(means, descending=True, stable=True)[:channels].tolist()
    return BlockActivation(
        block=block,
        shape=tuple(value.shape),
        mean=float(value.mean()),
        std=float(value.std(correction=0)),
        minimum=float(value.min()),
        maximum=float(value.max()),
        zero_share=float((value == 0).float().mean()),
        strongest=tuple(
            ChannelActivation(
                index=i,
                mean=float(means[i]),
                maximum=float(value[i].max()),
                values=to_numpy(value[i].clone()),
            )
            for i in strongest
        ),
    )
