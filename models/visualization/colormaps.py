"""Two colour maps, made by formula: one for evidence, perceptually even and readable without telling hues
apart, and one for evidence between two classes.

The path runs in OKLab (Ottosson 2020) from deep violet by rose and orange to pale yellow. Lightness rises in
a straight line, so the order of values survives greyscale print and every common colour blindness; equal
steps of value are nearly equal steps of colour. The map for two sides goes from white to blue and to orange,
the pair that all common colour blindness leaves apart, equally light and equally strong at equal value.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_LIGHTNESS = (0.22, 0.95)
_HUE_DEGREES = (-75.0, 105.0)
_CHROMA = 0.17
_STEPS = 256
_SIDES_DEGREES = (252.0, 58.0)
"""Hues of the other class and of the class."""

_TO_LMS = np.array([
    [1.0, 0.3963377774, 0.2158037573],
    [1.0, -0.1055613458, -0.0638541728],
    [1.0, -0.0894841775, -1.2914855480],
])  # fmt: skip
_TO_LINEAR_RGB = np.array([
    [4.0767416621, -3.3077115913, 0.2309699292],
    [-1.2684380046, 2.6097574011, -0.3413193965],
    [-0.0041960863, -0.7034186147, 1.7076147010],
])  # fmt: skip


def oklab_to_linear_rgb(lab: np.ndarray) -> np.ndarray:
    """Convert OKLab (…, 3) to linear-light sRGB (…, 3); values outside [0, 1] are outside what a screen can
    show.
    """
    rgb: np.ndarray = ((lab @ _TO_LMS.T) ** 3) @ _TO_LINEAR_RGB.T
    return rgb


@lru_cache(maxsize=1)
def evidence_table() -> np.ndarray:
    """Return the map as uint8 (256, 3): row 0 for no evidence, row 255 for the strongest."""
    share = np.linspace(0.0, 1.0, _STEPS)
    lightness = _LIGHTNESS[0] + (_LIGHTNESS[1] - _LIGHTNESS[0]) * share
    hue = np.deg2rad(_HUE_DEGREES[0] + (_HUE_DEGREES[1] - _HUE_DEGREES[0]) * share)
    chroma = _widest_chroma(lightness, hue)
    return _oklch_to_srgb(lightness, chroma, hue)


@lru_cache(maxsize=1)
def contrast_table() -> np.ndarray:
    """Return the map of two sides as uint8 (511, 3): row 0 strongest for the other class (blue), row 255
    neither, row 510 strongest for the class (orange).
    """
    share = np.linspace(-1.0, 1.0, 2 * _STEPS - 1)
    lightness = 0.97 - 0.35 * np.abs(share)
    sides: np.ndarray = np.deg2rad(_SIDES_DEGREES)
    hue: np.ndarray = np.where(share < 0, sides[0], sides[1])
    # Both sides take the chroma that the narrower one can show, so that neither looks stronger.
    widest = np.minimum(
        *(_widest_chroma(lightness, np.full_like(hue, h)) for h in np.deg2rad(_SIDES_DEGREES))
    )
    return _oklch_to_srgb(lightness, widest * np.minimum(np.abs(share) * 3.0, 1.0), hue)


def _oklch_to_srgb(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Convert OKLCh to a read-only table of uint8 sRGB."""
    lab = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], axis=1)
    linear = np.clip(oklab_to_linear_rgb(lab), 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    table: np.ndarray = np.rint(encoded * 255.0).astype(np.uint8)
    table.setflags(write=False)
    return table


def apply_evidence_colormap(values: np.ndarray) -> np.ndarray:
    """Convert values in [0, 1] of any shape to uint8 (…, 3)."""
    table = evidence_table()
    coloured: np.ndarray = table[np.rint(np.clip(values, 0.0, 1.0) * (_STEPS - 1)).astype(np.intp)]
    return coloured


def apply_contrast_colormap(values: np.ndarray) -> np.ndarray:
    """Convert values in [-1, 1] of any shape to uint8 (…, 3)."""
    place = np.rint((np.clip(values, -1.0, 1.0) + 1.0) * (_STEPS - 1)).astype(np.intp)
    coloured: np.ndarray = contrast_table()[place]
    return coloured


def _widest_chroma(lightness: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """Return for each step the chroma, at most _CHROMA, that still lies within sRGB; smoothed so that the map
    has no kink.
    """
    candidates = np.linspace(0.0, _CHROMA, 120)
    lab = np.stack(
        [
            np.broadcast_to(lightness[:, None], (len(lightness), 120)),
            np.cos(hue)[:, None] * candidates,
            np.sin(hue)[:, None] * candidates,
        ],
        axis=2,
    )
    rgb = oklab_to_linear_rgb(lab)
    inside = ((rgb >= 0.0) & (rgb <= 1.0)).all(axis=2)
    widest = np.where(inside, candidates, 0.0).max(axis=1)
    padded = np.pad(widest, 20, mode="edge")
    return np.convolve(padded, np.full(41, 1 / 41), mode="valid")
