"""A heatmap laid over the user's own image, and the border that the model never saw marked as such."""

from __future__ import annotations

import functools

import numpy as np
import PIL.Image

from models.attribution.result import Attribution
from models.images.decode import Image
from models.images.frame import Frame
from models.visualization.colormaps import apply_contrast_colormap, evidence_table

_STRENGTH = 0.78
_GREYED = 0.35
_HATCH_PERIOD = 12
_ALPHA = [round(255 * _STRENGTH * (level / 255) ** 0.9) for level in range(256)]
"""How opaque the colour of each strength is."""
_DIMMED = [round(level * 0.55 + 255 * 0.12) for level in range(256)]
_ON_LINE = [round(level * 0.55 + 255 * 0.45) for level in range(256)]
_MAX_SIDE = 1600


def draw_overlay(
    image: Image,
    frame: Frame,
    attribution: Attribution,
    *,
    max_side: int = _MAX_SIDE,
    full_scale: float | None = None,
    fade: float = 0.0,
) -> PIL.Image.Image:
    """Draw the upright image with the positive evidence over it; of a contrast with both sides'.

    Strong evidence is opaque and bright; without evidence the image stays visible, slightly greyed, so that
    colour always means evidence. The unseen border is dimmed and hatched. An image longer than ``max_side``
    pixels a side is shown smaller. Full colour is the map's own maximum, or ``full_scale`` (in the map's raw
    units) so that several maps can be compared. A contrast's own is the strongest value of either side. What
    is below the share ``fade`` of full colour, 0 to below 1, is not coloured, and what is above it is
    stretched over all colours: weak evidence goes, and the map itself stays as it is.
    """
    if attribution.target.against is not None:
        return _draw_two_sided(image, frame, attribution.values, max_side, full_scale, fade)
    pil_image, frame = shrink_to_fit(image.pil, frame, max_side)
    laid = frame.unwarp(attribution.positive(full_scale))
    unseen = np.isnan(laid)
    shares = _faded(np.clip(np.nan_to_num(laid, nan=0.0), 0.0, 1.0), fade)
    strength = np.rint(shares * 255.0).astype(np.uint8)
    colours = PIL.Image.fromarray(strength)
    colours.putpalette(evidence_table().tobytes())
    return _blend(pil_image, strength, colours, unseen)


def draw_contrast_overlay(
    image: Image, frame: Frame, one: Attribution, other: Attribution, *, max_side: int = _MAX_SIDE
) -> PIL.Image.Image:
    """Return the upright image with what speaks for one class rather than the other: orange for the one,
    blue for the other.

    The map is the difference of the two signed maps, which for Grad-CAM is the map of the difference of the
    two logits. Full colour is the strongest value of either side.
    """
    return _draw_two_sided(image, frame, one.values - other.values, max_side)


def _draw_two_sided(
    image: Image, frame: Frame, values: np.ndarray, max_side: int, full_scale: float | None = None,
    fade: float = 0.0,
) -> PIL.Image.Image:  # fmt: skip
    pil_image, frame = shrink_to_fit(image.pil, frame, max_side)
    top = full_scale or float(np.abs(values).max())
    laid = frame.unwarp(np.clip(values / top, -1.0, 1.0) if top > 0 else values)
    signed = _faded(np.clip(np.nan_to_num(laid, nan=0.0), -1.0, 1.0), fade)
    strength = np.rint(np.clip(np.abs(signed), 0.0, 1.0) * 255.0).astype(np.uint8)
    return _blend(pil_image, strength, PIL.Image.fromarray(apply_contrast_colormap(signed)), np.isnan(laid))


def _faded(shares: np.ndarray, fade: float) -> np.ndarray:
    """Return shares of full colour, -1 to 1, without those below a share, the others stretched to 0."""
    if not fade:
        return shares
    left: np.ndarray = np.sign(shares) * np.maximum(np.abs(shares) - fade, 0.0) / (1.0 - fade)
    return left


def _blend(
    image: PIL.Image.Image, strength: np.ndarray, colours: PIL.Image.Image, unseen: np.ndarray
) -> PIL.Image.Image:
    """Return colours over the greyed image, opaque where strong; what was never seen is hatched.

    In Pillow's bytes: in floats the same took ten times as long, more than the model.
    """
    quiet = PIL.Image.blend(image, image.convert("L").convert("RGB"), _GREYED)
    alpha = PIL.Image.fromarray(strength).point(_ALPHA)
    blended = PIL.Image.composite(colours.convert("RGB"), quiet, alpha)
    if not unseen.any():
        return blended
    return PIL.Image.composite(_hatch(blended), blended, PIL.Image.fromarray(unseen.astype(np.uint8) * 255))


def shrink_to_fit(image: PIL.Image.Image, frame: Frame, max_side: int) -> tuple[PIL.Image.Image, Frame]:
    """Shrink a large image, which may have been decoded smaller already; the frame keeps its proportions,
    for its boxes are shares of the image's size.
    """
    if max(frame.width, frame.height) <= max_side:
        return image, frame
    smaller = frame.resized_to(max_side)
    size = (smaller.width, smaller.height)
    return image.resize(size, PIL.Image.Resampling.BILINEAR, reducing_gap=2.0), smaller


def _hatch(image: PIL.Image.Image) -> PIL.Image.Image:
    """Dim the image, with thin diagonals over it."""
    dimmed = image.point(_DIMMED * 3)
    return PIL.Image.composite(dimmed.point(_ON_LINE * 3), dimmed, _diagonals(*image.size))


@functools.lru_cache(maxsize=4)
def _diagonals(width: int, height: int) -> PIL.Image.Image:
    """Return a mask of thin diagonals, which pictures of one size share."""
    rows, cols = np.arange(height)[:, None], np.arange(width)[None, :]
    return PIL.Image.fromarray(((rows + cols) % _HATCH_PERIOD < 1).astype(np.uint8) * 255)
