"""Maps averaged over flips and noise, each carried back to where it belongs.

What only one slightly different picture shows is an accident; what they all show is steadier evidence
(SmoothGrad; Smilkov et al. 2017).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.attribution.forward import ForwardPass, run_forward
from models.attribution.perturbation import Effort
from models.attribution.registry import DEFAULT_METHOD, attribute
from models.attribution.result import Attribution, make_attribution
from models.attribution.targets import Target
from models.errors import ConfigError

_MOST = 64


@dataclass(frozen=True, slots=True)
class Smoothing:
    """What is averaged over."""

    flip: bool = False
    """Each picture also mirrored left to right, its map mirrored back."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise, of the range of the picture's values."""
    samples: int = 8
    """Noisy pictures; without noise there is one."""
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for figures out of range."""
        if not 0.0 <= self.noise <= 1.0:
            raise ConfigError(f"noise is {self.noise}; it must be from 0 to 1, of the picture's range.")
        if not 1 <= self.samples <= _MOST:
            raise ConfigError(f"samples is {self.samples}; it must be from 1 to {_MOST}.")

    @property
    def on(self) -> bool:
        """Whether there is anything to average over."""
        return self.flip or self.noise > 0

    @property
    def variations(self) -> int:
        """How many pictures are explained in the place of one."""
        return (self.samples if self.noise > 0 else 1) * (2 if self.flip else 1)


def attribute_smoothed(
    evidence: ForwardPass,
    targets: Sequence[Sequence[Target | int]],
    smoothing: Smoothing,
    *,
    method: str = DEFAULT_METHOD,
    effort: Effort | None = None,
) -> list[list[Attribution]]:
    """Attribute as :func:`models.attribution.registry.attribute`, averaged over variations of the images."""
    variations = _variations(evidence.x, smoothing)
    sums: list[list[np.ndarray]] = []
    found: list[list[Attribution]] = []
    for x, mirrored in variations:
        varied = run_forward(evidence.model, x, block=evidence.block, engine=evidence.engine)
        found = attribute(varied, targets, method=method, effort=effort)
        maps = [[each.values[:, ::-1] if mirrored else each.values for each in row] for row in found]
        sums = [_add_maps(*pair) for pair in zip(sums, maps, strict=True)] if sums else maps
    how = {
        "flip": smoothing.flip,
        "noise": smoothing.noise,
        "noise_seed": smoothing.seed,
        "averaged": len(variations),
    }
    return [
        [
            make_attribution(
                each.target,
                total / len(variations),
                method=each.method,
                block=each.block,
                unit=each.unit,
                settings={**each.settings, **how},
                grid=each.grid,
            )
            for each, total in zip(row, of_one, strict=True)
        ]
        for row, of_one in zip(found, sums, strict=True)
    ]


def _add_maps(sums: list[np.ndarray], maps: list[np.ndarray]) -> list[np.ndarray]:
    return [total + each for total, each in zip(sums, maps, strict=True)]


def _variations(x: Tensor, smoothing: Smoothing) -> list[tuple[Tensor, bool]]:
    """(pictures, whether they are mirrored)."""
    generator = torch.Generator().manual_seed(smoothing.seed)
    ranges = x.amax(dim=(1, 2, 3), keepdim=True) - x.amin(dim=(1, 2, 3), keepdim=True)
    made = []
    for _ in range(smoothing.samples if smoothing.noise > 0 else 1):
        # The same noise for every picture, so that none depends on its neighbours in a batch.
        noisy = x + smoothing.noise * ranges * torch.randn(x.shape[1:], generator=generator)
        made.append((noisy, False))
        if smoothing.flip:
            made.append((noisy.flip(3), True))
    return made
