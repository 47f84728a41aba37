"""Maps that a map is held against: what it must do better than to say something about this picture.

Random maps alone flatter every map: photographs have their object near the middle, so the map of another
picture, the mirrored one and a plain spot beat most random ones as well. So the controls are of several
kinds: true maps of other pictures (a bank that the bundle keeps, of its validation pictures) as they are and
mirrored, the map itself mirrored, a spot in the middle, the picture's own edges, which need no model, and
random maps as smooth as the map.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.devices import to_numpy

_KINDS = ("other", "random", "other mirrored", "mirrored", "other", "other mirrored", "other", "edges",
          "other", "other mirrored", "other", "other mirrored", "other", "other mirrored", "other", "random",
          "other mirrored", "other")  # fmt: skip
"""In turn. The proportions were chosen so that over photographs mirrored, foreign, centred and edge maps come
to the middle of the controls on average."""
_ONCE = ("mirrored", "edges")
_MOST = 32
_SAME = 0.999
"""Correlation from which a map of the bank is this picture's own."""


def centre_spot(shape: Sequence[int]) -> np.ndarray:
    """Return a round spot in the middle, float32 (rows, cols)."""
    rows, cols = (np.linspace(-1, 1, cells) for cells in shape)
    spot: np.ndarray = np.exp(-(rows[:, None] ** 2 + cols**2)).astype(np.float32)
    return spot


def picture_seed(x: Tensor) -> int:
    """Return a seed that is one image's own: the same picture gets the same controls, another one others."""
    return zlib.crc32(np.ascontiguousarray(to_numpy(x)).tobytes())


def edge_map(x: Tensor, shape: Sequence[int]) -> np.ndarray:
    """Return how strong the edges of an image (3, H, W) are in each cell, float32 (rows, cols), by Sobel's
    operator on the mean of the colours.
    """
    grey = F.pad(x.mean(0, keepdim=True)[None], (1, 1, 1, 1), mode="replicate")
    across = torch.tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]], device=x.device)
    kernels = torch.stack([across, across.T])[:, None].to(grey)
    strength = F.conv2d(grey, kernels).square().sum(1, keepdim=True).sqrt()
    return to_numpy(F.adaptive_avg_pool2d(strength, (shape[0], shape[1]))[0, 0].float())


def make_control_maps(
    grid: np.ndarray, bank: np.ndarray | None, count: int, *, seed: int, edges: np.ndarray | None = None
) -> list[np.ndarray]:
    """Return so many controls for a map (rows, cols), of its shape; ``bank`` holds maps (N, …) of other
    pictures, ``edges`` is the picture's edge map. Without them, or when the bank is used up, random ones
    stand in their place.
    """
    others = _others(grid, bank, seed)
    surrogates = iter(random_surrogates(grid, count, seed=seed))
    controls = []
    for number, kind in zip(range(count), itertools.cycle(_KINDS), strict=False):
        control = None
        if kind in _ONCE and number < len(_KINDS):
            control = grid[:, ::-1] if kind == "mirrored" else edges
        elif kind.startswith("other"):
            control = next(others, None)
            if control is not None and kind == "other mirrored":
                control = control[:, ::-1]
        controls.append(np.ascontiguousarray(next(surrogates) if control is None else control))
    return controls


def select_bank(maps: Sequence[np.ndarray]) -> np.ndarray | None:
    """Return at most 32 of the maps (rows, cols), evenly taken, each at most 1 in size and 32 cells a side,
    to be kept as the bank of a model; None where there are none.
    """
    if not maps:
        return None
    chosen = [maps[place] for place in np.linspace(0, len(maps) - 1, min(len(maps), _MOST)).astype(int)]
    shape = (min(chosen[0].shape[0], _MOST), min(chosen[0].shape[1], _MOST))
    laid = [torch.from_numpy(values / max(float(np.abs(values).max()), 1e-12))[None] for values in chosen]
    return to_numpy(torch.cat([F.adaptive_avg_pool2d(item.float(), shape) for item in laid]))


def random_surrogates(grid: np.ndarray, count: int, *, seed: int) -> list[np.ndarray]:
    """Return random maps of the same shape, mean and power spectrum as ``grid`` (Theiler et al. 1992): the
    phases of its Fourier transform are drawn anew.
    """
    rng = np.random.default_rng(seed)
    strength = np.abs(np.fft.rfft2(grid))
    maps = []
    for _ in range(count):
        # Phases of white noise have the symmetry that a real map's must have.
        noise = np.fft.rfft2(rng.standard_normal(grid.shape))
        phases = noise / np.maximum(np.abs(noise), 1e-12)
        phases[0, 0] = 1.0
        maps.append(np.fft.irfft2(strength * phases, s=grid.shape).astype(np.float32))
    return maps


def _others(grid: np.ndarray, bank: np.ndarray | None, seed: int) -> Iterator[np.ndarray]:
    """Yield the maps of the bank in an order of the picture's own, in the map's shape, without its own."""
    if bank is None:
        return
    for number in np.random.default_rng(seed).permutation(len(bank)):
        other = _resized(bank[number], grid.shape)
        if np.std(other) > 0 and not (np.std(grid) > 0 and _correlation(grid, other) > _SAME):
            yield other


def _resized(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if values.shape == shape:
        return values.astype(np.float32)
    laid = torch.from_numpy(values.astype(np.float32))[None, None]
    return to_numpy(F.interpolate(laid, shape, mode="bilinear", align_corners=False)[0, 0])


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
