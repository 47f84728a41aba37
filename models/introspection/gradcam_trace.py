"""Grad-CAM's five steps for one image and class, with everything that passes from one to the next.

(1) forward: the block's activations and the scores; (2) the gradient of the class's logit at the block;
(3) its signed mean per channel; (4) the weighted sum of the activations, and its positive part; (5) laid over
the image.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from models.attribution.forward import ForwardPass
from models.attribution.registry import attribute_each
from models.attribution.result import Attribution
from models.attribution.targets import Target
from models.devices import to_host, to_numpy


@dataclass(frozen=True, slots=True)
class ChannelTrace:
    """A channel on its way through the steps of Grad-CAM."""

    index: int
    activation: np.ndarray = field(repr=False)
    """Step 1, float32 (rows, cols)."""
    gradient: np.ndarray = field(repr=False)
    """Step 2, float32 (rows, cols)."""
    weight: float
    """Step 3: the mean of the gradient."""
    share: float
    """Of the sum of the whole map, what this channel's weighted activation adds; below 0 it takes away."""


@dataclass(frozen=True, slots=True)
class GradCamTrace:
    """The five steps."""

    target: Target
    block: str
    logit: float
    """Of the target."""
    score: float
    channels: int
    """Of the block; those below are the most important ones."""
    speaking_for: tuple[ChannelTrace, ...]
    """Channels that add most to the map, strongest first."""
    speaking_against: tuple[ChannelTrace, ...]
    """Channels that take most away, strongest first."""
    weights: np.ndarray = field(repr=False)
    """Step 3 for all channels, float32 (channels,)."""
    attribution: Attribution
    """Step 4: the signed map; step 5 is its overlay."""


def trace_grad_cam(forward: ForwardPass, item: int, target: Target, *, channels: int = 4) -> GradCamTrace:
    """Follow Grad-CAM through image number ``item`` of a forward pass."""
    attribution = attribute_each(forward, [target] * len(forward.x))[item]
    gradient = forward.gradient([target] * len(forward.x))[item]
    activation = forward.map.detach()[item]
    weights = gradient.mean(dim=(1, 2))
    sums = to_host(weights * activation.sum(dim=(1, 2)))
    total = float(sums.sum()) or 1.0
    order = sums.argsort(descending=True, stable=True).tolist()

    def traced(index: int) -> ChannelTrace:
        return ChannelTrace(
            index=index,
            activation=to_numpy(activation[index]),
            gradient=to_numpy(gradient[index]),
            weight=float(weights[index]),
            share=float(sums[index]) / abs(total),
        )

    scores = forward.model.scoring.scores(forward.logits[item])
    return GradCamTrace(
        target=target,
        block=forward.block,
        logit=float(target.of(forward.logits[item])),
        score=float(target.of(scores)),
        channels=len(weights),
        speaking_for=tuple(traced(i) for i in order[:channels] if float(sums[i]) > 0),
        speaking_against=tuple(traced(i) for i in order[::-1][:channels] if float(sums[i]) < 0),
        weights=to_numpy(weights),
        attribution=attribution,
    )
