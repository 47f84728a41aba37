"""Maps averaged over flips and noise, each carried back to where it belongs.

What only one slightly different image shows is an accident; what they all show is steadier evidence
(SmoothGrad; Smilkov et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.attribution.forward import ForwardPass, run_forward
from models.attribution.measured import MEASURED
from models.attribution.parameters import Parameters
from models.attribution.registry import DEFAULT_METHOD, attribute
from models.attribution.result import Attribution, make_attribution
from models.attribution.targets import Target
from models.errors import ConfigError

_MAX_SAMPLES = 64


@dataclass(frozen=True, slots=True)
class Smoothing:
    """The variations of an image over which its maps are averaged."""

    flip: bool = False
    """Each image also mirrored left to right, its map mirrored back."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, as a share of the range of the image's values."""
    samples: int = 8
    """Noisy images; without noise there is one."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for figures out of range."""
        if not 0.0 <= self.noise <= 1.0:
            raise ConfigError(f"noise is {self.noise}; it must be from 0 to 1, of the picture's range.")
        if not 1 <= self.samples <= _MAX_SAMPLES:
            raise ConfigError(f"samples is {self.samples}; it must be from 1 to {_MAX_SAMPLES}.")

    @property
    def on(self) -> bool:
        """Whether there is anything to average over."""
        return self.flip or self.noise > 0

    @property
    def variations(self) -> int:
        """Number of images that are explained in the place of one."""
        return (self.samples if self.noise > 0 else 1) * (2 if self.flip else 1)


def attribute_smoothed(
    forward: ForwardPass,
    targets: Sequence[Sequence[Target | int]],
    smoothing: Smoothing,
    *,
    method: str = DEFAULT_METHOD,
    parameters: Parameters | None = None,
) -> list[list[Attribution]]:
    """Attribute as :func:`models.attribution.registry.attribute`, averaged over variations of the images."""
    variations = _variations(forward.x, smoothing)
    sums: list[list[np.ndarray]] = []
    latest: list[list[Attribution]] = []
    for x, mirrored in variations:
        varied = run_forward(forward.model, x, block=forward.block, backend=forward.backend)
        latest = attribute(varied, targets, method=method, parameters=parameters)
        maps = [[item.values[:, ::-1] if mirrored else item.values for item in row] for row in latest]
        sums = [_add_maps(*pair) for pair in zip(sums, maps, strict=True)] if sums else maps
    averaged = {
        "flip": smoothing.flip,
        "noise": smoothing.noise,
        "noise_seed": smoothing.seed,
        "averaged": len(variations),
    }
    return [
        [
            make_attribution(
                item.target,
                total / len(variations),
                method=item.method,
                block=item.block,
                unit=item.unit,
                settings={k: v for k, v in item.settings.items() if k not in MEASURED} | averaged,
                grid=item.grid,
            )
            for item, total in zip(row, image_sums, strict=True)
        ]
        for row, image_sums in zip(latest, sums, strict=True)
    ]


def _add_maps(sums: list[np.ndarray], maps: list[np.ndarray]) -> list[np.ndarray]:
    return [total + values for total, values in zip(sums, maps, strict=True)]


def _variations(x: Tensor, smoothing: Smoothing) -> list[tuple[Tensor, bool]]:
    """Return (images, whether they are mirrored) for each variation."""
    generator = torch.Generator().manual_seed(smoothing.seed)
    ranges = x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True)
    variations = []
    for _ in range(smoothing.samples if smoothing.noise > 0 else 1):
        # The same noise for every image, so that none depends on its neighbours in a batch.
        noisy = x + smoothing.noise * ranges * torch.randn(x.shape[1:], generator=generator)
        variations.append((noisy, False))
        if smoothing.flip:
            variations.append((noisy.flip(3), True))
    return variations
