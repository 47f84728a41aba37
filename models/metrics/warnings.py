"""What a reader should know before trusting one map: at the border, saturated, negative, faint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.attribution.result import STATUS_MEANINGS, Attribution
from models.images.decode import Image
from models.images.frame import Frame

_MAX_HIDDEN_SHARE = 0.25
_SATURATED = 0.999
_FAINT = 0.1
_LARGE_RESIDUAL = 0.1
"""Of the rise that integrated gradients share out."""
_MUCH_NEGATIVE = 0.01
"""Of a block's activation, by its size."""
_BORDER_OF_INPUT = 1 / 7
"""How wide the rim of a map of pixels is, of its side: as wide as a cell of a usual last block."""


@dataclass(frozen=True, slots=True)
class BorderAudit:
    """The share of a map's positive evidence in the border cells that zero padding feeds.

    There a network sees less image and more zeros, and evidence is often an artefact of the edge.
    """

    mass: float
    """Share of the positive evidence in the outermost cells, 0 to 1."""
    area: float
    """Share of the cells that are outermost: what an even map would have there."""

    @property
    def suspicious(self) -> bool:
        """Whether the rim holds more than half of what could be inside it beyond its area."""
        return self.mass > (1 + self.area) / 2


def audit_border(attribution: Attribution) -> BorderAudit:
    """Audit the outermost ring of a block's cells, or as wide a ring of a map of pixels."""
    positive = np.maximum(attribution.values, 0.0)
    pixels = attribution.grid == "input"
    width = max(1, round(min(positive.shape) * _BORDER_OF_INPUT)) if pixels else 1
    inner = np.zeros(positive.shape, dtype=bool)
    inner[width:-width, width:-width] = True
    total = float(positive.sum())
    return BorderAudit(
        mass=float(positive[~inner].sum()) / total if total > 0 else 0.0, area=float((~inner).mean())
    )


def image_warnings(image: Image, frame: Frame) -> list[str]:
    """Return what is lost between the image and what the model saw."""
    warnings = list(image.notes)
    x0, y0, x1, y1 = frame.seen_box
    if (cropped := crop_warning(frame)) is not None:
        warnings.append(cropped)
    if min(x1 - x0, y1 - y0) < min(frame.crop_width, frame.crop_height) / 4:
        warnings.append(
            f"The picture is small: {image.width} x {image.height} pixels were enlarged for the model, "
            "so its details are not evidence."
        )
    return warnings


def crop_warning(frame: Frame) -> str | None:
    """Return what to know about an image of which much was cropped away; None for any other."""
    unseen = 1.0 - frame.seen_share
    if unseen <= _MAX_HIDDEN_SHARE:
        return None
    return f"The model saw only the middle of the picture: {unseen:.0%} of its area was cropped away."


def map_warnings(attribution: Attribution, score: float, full_scale: float | None = None) -> list[str]:
    """Return what is odd about one map; ``score`` is its class's, ``full_scale`` what it is drawn to."""
    name = attribution.target.name
    if attribution.status != "ok":
        return [f"{name}: {STATUS_MEANINGS[attribution.status]}"]
    warnings = _method_warnings(attribution)
    rim = audit_border(attribution)
    if rim.suspicious:
        warnings.append(
            f"{name}: {rim.mass:.0%} of the evidence lies in the outermost cells ({rim.area:.0%} of the "
            "area), where the network sees its own padding; it may be an artefact of the edge."
        )
    if score >= _SATURATED and attribution.unit == "score":
        warnings.append(
            f"{name}: The score is {score:.3f}, as high as it can be; covering a part hardly "
            "lowers it, so the map is mostly noise."
        )
    elif score >= _SATURATED:
        warnings.append(
            f"{name}: The score is {score:.3f}, as high as it can be; the map shows what raises the "
            "logit, of which there is more than the score needs."
        )
    if full_scale is not None and attribution.maximum < _FAINT * full_scale:
        warnings.append(
            f"{name}: The evidence is faint, at most {attribution.maximum / full_scale:.0%} of the strongest "
            "map beside it."
        )
    return warnings


def _method_warnings(attribution: Attribution) -> list[str]:
    """Return what the method itself measured and a reader should know."""
    name, settings = attribution.target.name, attribution.settings
    warnings = []
    residual, rise = settings.get("residual"), settings.get("rise")
    if isinstance(residual, float) and isinstance(rise, float) and residual > _LARGE_RESIDUAL:
        warnings.append(
            f"{name}: The shares miss the score's rise of {rise:.3g} by {residual:.0%} of it after "
            f"{settings['steps']} steps; more of them (most_steps) would bring them closer."
        )
    negative = settings.get("negative_activation")
    if isinstance(negative, float) and negative > _MUCH_NEGATIVE:
        warnings.append(
            f"{name}: {negative:.0%} of the activation at {attribution.block} is negative, and Grad-CAM++ is "
            "derived for none; ask for hires_cam or layer_cam there."
        )
    return warnings
