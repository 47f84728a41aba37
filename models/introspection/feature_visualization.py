"""What a channel looks for: an image that drives it, found by gradient ascent.

The image, not the weights, is optimised (Erhan et al. 2009). Plain ascent gives noise that a person cannot
read; three things together give shapes (Olah et al. 2017): the image is kept as its Fourier coefficients
with their natural fall-off, in colours that are decorrelated as those of photographs are, and it must drive
the channel wherever it is moved, turned or enlarged a little. The objective is the channel before its
activation function, so that a channel that is silent at first still has a gradient.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.attribution.activation_functions import RELU, RELU6, SMOOTH
from models.cancellation import check_deadline
from models.errors import ExplanationError, UnknownChoice
from models.images.geometry import Geometry
from models.networks.transfer_model import TransferModel
from models.progress import Progress, no_progress

# The Cholesky-like root of the covariance of photographs' colours (ImageNet), as colour axes.
_COLOUR_ROOT = torch.tensor([[0.26, 0.09, 0.02], [0.27, 0.00, -0.05], [0.27, -0.09, 0.03]])
_PASSING = frozenset(
    {"cat", "concat", "max_pool2d", "_max_pool2d", "view", "reshape", "transpose", "contiguous"}
)
_RATE = 0.05
_MOST_SIDE = 512


@dataclass(frozen=True, slots=True)
class FilterTemplate:
    """A synthesized image that a channel responds to."""

    block: str
    channel: int
    image: np.ndarray = field(repr=False)
    """uint8 (side, side, 3)."""
    response: float
    """Mean of the channel before its activation function, on the image."""
    start: float
    """The same on the noise that it began from."""
    steps: int
    seed: int


def synthesize_templates(
    model: TransferModel,
    block: str,
    channels: Sequence[int],
    *,
    steps: int = 160,
    side: int = 160,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[FilterTemplate]:
    """Synthesise an image for each channel of a block, all at once.

    Raises UnknownChoice for an unknown block or channel, ExplanationError for a block without channels, and
    for a side that the network cannot take.
    """
    level = model.index_of(block) + 1
    if not 32 <= side <= _MOST_SIDE or steps < 1:
        raise ExplanationError(f"side is {side} (from 32 to {_MOST_SIDE}), steps is {steps} (from 1).")
    if any(model.layout(name).name == "tokens" for name in model.block_names):
        side = model.geometry.crop_height
    generator = torch.Generator().manual_seed(seed)
    count = count_channels(model, block)
    for channel in channels:
        if not 0 <= channel < count:
            raise UnknownChoice("channel", channel, (f"0 to {count - 1}",))
    spectrum = (
        0.01 * torch.randn(len(channels), 3, side, side // 2 + 1, 2, generator=generator)
    ).requires_grad_()
    optimiser = torch.optim.Adam([spectrum], lr=_RATE)
    own = torch.arange(len(channels)), torch.tensor(list(channels))

    def response(images: Tensor) -> Tensor:
        with _PreActivationRecorder() as watched:
            value = model.run_blocks(_normalize(images, model.geometry), 0, level)
        return model.as_map(block, watched.before(value)).mean(dim=(2, 3))[own]

    try:
        with torch.no_grad():
            start = response(_to_pixels(spectrum, side))
    except RuntimeError as error:
        raise ExplanationError(
            f"A picture of {side} x {side} is too small for {model.backbone.name}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    with torch.enable_grad():
        for step in range(steps):
            check_deadline()
            optimiser.zero_grad()
            loss = -response(_jitter(_to_pixels(spectrum, side), generator)).sum()
            (spectrum.grad,) = torch.autograd.grad(loss, spectrum)
            optimiser.step()
            progress("templates", step + 1, steps)
    with torch.no_grad():
        pixels_01 = _to_pixels(spectrum, side)
        last = response(pixels_01)
    pixels = (pixels_01.permute(0, 2, 3, 1).numpy() * 255).round().astype(np.uint8)
    return [
        FilterTemplate(block, channel, pixels[n], float(last[n]), float(start[n]), steps, seed)
        for n, channel in enumerate(channels)
    ]


def count_channels(model: TransferModel, block: str) -> int:
    """Return how many channels a block's map has; raises UnknownChoice, and ExplanationError for one
    without.
    """
    geometry = model.geometry
    with torch.no_grad():
        value = model.until(block, torch.zeros(1, 3, geometry.crop_height, geometry.crop_width))
    return int(model.as_map(block, value).shape[1])


class _PreActivationRecorder(TorchFunctionMode):
    """A mode in which this thread's activation functions keep their inputs, also through operations that only
    concatenate, permute or take the maximum of them.
    """

    def __init__(self) -> None:
        super().__init__()
        # By identity, each with the tensor itself, so that no identity is used twice.
        self._known: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if func in RELU or func in RELU6 or func in SMOOTH:
            # A copy: the function may work in place.
            pre_activation = args[0].clone()
            output = func(*args, **options)
            self._known[id(output)] = (output, pre_activation)
            return output
        output = func(*args, **options)
        if getattr(func, "__name__", "") in _PASSING and isinstance(output, Tensor) and self._any(args):
            self._known[id(output)] = (output, func(*self._replaced(args), **options))
        return output

    def before(self, value: Tensor) -> Tensor:
        """Return what the activation functions that gave ``value`` were given; ``value`` where none did."""
        recorded = self._known.get(id(value))
        return recorded[1] if recorded is not None and recorded[0] is value else value

    def _any(self, args: Sequence[Any]) -> bool:
        return any(
            self._any(arg) if isinstance(arg, list | tuple) else id(arg) in self._known for arg in args
        )

    def _replaced(self, args: Sequence[Any]) -> list[Any]:
        return [
            self._replaced(arg)
            if isinstance(arg, list | tuple) and self._any(arg)
            else self.before(arg)
            if isinstance(arg, Tensor)
            else arg
            for arg in args
        ]


def _to_pixels(spectrum: Tensor, side: int) -> Tensor:
    """Convert Fourier coefficients to images (N, 3, side, side) in [0, 1]."""
    rows, cols = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    falling = 1.0 / torch.clamp(torch.sqrt(rows**2 + cols**2), min=1.0 / side)
    waves = torch.fft.irfft2(
        torch.view_as_complex(spectrum.contiguous()) * falling * math.sqrt(side), s=(side, side)
    )
    colours = torch.einsum("cd,ndhw->nchw", _COLOUR_ROOT / _COLOUR_ROOT.norm(dim=0).max(), waves)
    return torch.sigmoid(colours)


def _jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift, rotate and enlarge an image a little, each step differently."""
    draw = (torch.rand(4, generator=generator) * 2 - 1).tolist()
    angle, zoom = math.radians(10 * draw[0]), 1.0 + 0.08 * draw[1]
    turn = torch.tensor([
        [math.cos(angle) * zoom, -math.sin(angle) * zoom, 0.1 * draw[2]],
        [math.sin(angle) * zoom, math.cos(angle) * zoom, 0.1 * draw[3]],
    ])  # fmt: skip
    grid = F.affine_grid(turn.expand(len(images), 2, 3), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def _normalize(images: Tensor, geometry: Geometry) -> Tensor:
    mean, std = (torch.tensor(channels).view(1, 3, 1, 1) for channels in (geometry.mean, geometry.std))
    return (images - mean) / std
