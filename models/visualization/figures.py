"""Sheets for a person to look at: the steps of Grad-CAM, the stages of a network, methods side by side, the
parts of a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
from PIL import ImageDraw

from models.attribution.forward import ForwardPass
from models.attribution.registry import DEFAULT_METHOD
from models.attribution.result import Attribution, make_attribution, shared_scale
from models.attribution.targets import Target
from models.images.decode import Image
from models.images.frame import Frame
from models.introspection.decomposition import Decomposition, decompose
from models.introspection.gradcam_trace import ChannelTrace, GradCamTrace
from models.metrics.layer_sweep import SweepStage
from models.networks.receptive_field import ReceptiveField
from models.visualization.colormaps import apply_contrast_colormap, apply_evidence_colormap
from models.visualization.contact_sheet import Tile, draw_contact_sheet
from models.visualization.overlay import draw_overlay, shrink_to_fit

_SIDE = 240
_BOX = (255, 176, 0)


def draw_evidence_map(values: np.ndarray, top: float) -> PIL.Image.Image:
    """Draw values of 0 or more as square cells, full colour at ``top``."""
    return _draw_cells(
        apply_evidence_colormap(np.maximum(values, 0.0) / top if top > 0 else np.zeros_like(values))
    )


def draw_signed_map(values: np.ndarray, top: float) -> PIL.Image.Image:
    """Draw signed values as square cells: orange for, blue against, full colour at ``top`` either way."""
    return _draw_cells(apply_contrast_colormap(values / top if top > 0 else np.zeros_like(values)))


def draw_trace_figure(image: Image, frame: Frame, trace: GradCamTrace) -> PIL.Image.Image:
    """Draw Grad-CAM's five steps: a row for each traced channel, then the sum, its positive part and the
    overlay.
    """
    traced = [*trace.speaking_for, *trace.speaking_against]
    activation = max((float(np.abs(channel.activation).max()) for channel in traced), default=0.0)
    gradient = max((float(np.abs(channel.gradient).max()) for channel in traced), default=0.0)
    added = max((float(np.abs(channel.weight * channel.activation).max()) for channel in traced), default=0.0)
    tiles: list[Tile] = []
    for channel in traced:
        tiles += _channel_tiles(channel, activation, gradient, added)
    values = trace.attribution.values
    top = float(np.abs(values).max())
    tiles += [
        Tile(draw_signed_map(values, top), f"4  sum of all {trace.channels} channels", _format_range(values)),
        Tile(
            draw_evidence_map(values, float(values.max())), "4  its positive part", f"max {values.max():.3g}"
        ),
        Tile(
            draw_overlay(image, frame, trace.attribution, max_side=600),
            "5  over the picture",
            trace.attribution.status,
        ),
        Tile(image.pil, "the picture", f"{image.width} x {image.height}"),
    ]
    title = f"Grad-CAM for {trace.target.name} at {trace.block}, step by step (logit {trace.logit:.2f})"
    return draw_contact_sheet(tiles, columns=4, side=190, title=title)


def _channel_tiles(channel: ChannelTrace, activation: float, gradient: float, added: float) -> list[Tile]:
    product = channel.weight * channel.activation
    return [
        Tile(
            draw_evidence_map(channel.activation, activation),
            f"1  channel {channel.index} answers",
            _format_range(channel.activation),
        ),
        Tile(
            draw_signed_map(channel.gradient, gradient),
            "2  gradient of the logit there",
            _format_range(channel.gradient),
        ),
        Tile(_draw_bar(channel.weight, gradient), f"3  its mean: {channel.weight:+.2e}", "of all positions"),
        Tile(draw_signed_map(product, added), "4  weight x activation", f"{channel.share:+.1%} of the map"),
    ]


def draw_sweep_figure(image: Image, frame: Frame, stages: Sequence[SweepStage]) -> PIL.Image.Image:
    """Draw the map of each stage, with how far the model reacts to it."""
    tiles = [Tile(image.pil, "the picture", stages[0].attribution.target.name if stages else "")]
    for stage in stages:
        attribution, faithfulness = stage.attribution, stage.faithfulness
        detail = (
            f"score {faithfulness.score:+.2f}, beats {faithfulness.percentile:.0f} %"
            if faithfulness is not None
            else attribution.status
        )
        overlay = draw_overlay(image, frame, attribution, max_side=600)
        title = f"{attribution.block}  ({attribution.rows} x {attribution.cols})"
        tiles.append(Tile(overlay, title, f"{attribution.method}: {detail}"))
    return draw_contact_sheet(
        tiles,
        columns=min(len(tiles), 4),
        side=_SIDE,
        title="From edges to parts: the same picture at each stage",
    )


def draw_methods_figure(
    image: Image,
    frame: Frame,
    attributions: Sequence[Attribution],
    *,
    titles: Sequence[str],
    details: Sequence[str] = (),
) -> PIL.Image.Image:
    """Draw maps of several methods, each to its own full scale, for their units differ."""
    tiles = [Tile(image.pil, "the picture", attributions[0].target.name if attributions else "")]
    for number, (attribution, title) in enumerate(zip(attributions, titles, strict=True)):
        detail = details[number] if details else _format_range(attribution.values)
        tiles.append(Tile(draw_overlay(image, frame, attribution, max_side=600), title, detail))
    return draw_contact_sheet(tiles, columns=3, side=_SIDE + 40, title="One picture, several methods")


def draw_decomposition_figure(
    image: Image, frame: Frame, split: Decomposition, parts: Sequence[Attribution]
) -> PIL.Image.Image:
    """Draw what came through each part of a block, on one scale."""
    scale = shared_scale(list(parts))
    tiles = [Tile(image.pil, "the picture", f"{split.target.name}, logit {split.logit:.2f}")]
    for part, attribution in zip(split.parts, parts, strict=True):
        overlay = draw_overlay(image, frame, attribution, max_side=600, full_scale=scale)
        tiles.append(Tile(overlay, part.name, f"sum {part.total:+.2f}; without it {part.without:.2f}"))
    title = f"{split.block}: the evidence by {'branch' if split.kind == 'inception' else 'skip and branch'}"
    return draw_contact_sheet(tiles, columns=len(tiles), side=_SIDE, title=title)


def draw_block_parts(
    image: Image, frame: Frame, forward: ForwardPass, target: Target, block: str
) -> PIL.Image.Image:
    """Decompose the evidence at a block by its parts, and draw them."""
    result = decompose(forward.model, forward.x[0], target, block, backend=forward.backend)
    parts = [
        make_attribution(target, part.values, method=DEFAULT_METHOD, block=block) for part in result.parts
    ]
    return draw_decomposition_figure(image, frame, result, parts)


def draw_receptive_field(
    image: Image, frame: Frame, field: ReceptiveField, row: int, col: int
) -> PIL.Image.Image:
    """Draw the image with what one cell of a map sees of it: its receptive field, and the cell's own
    place.
    """
    pil_image, frame = shrink_to_fit(image.pil, frame, 1000)
    canvas = pil_image.convert("RGB")
    draw = ImageDraw.Draw(canvas)
    x0, y0, x1, y1 = frame.to_image(field.box(row, col))
    edge = (max(0, x0), max(0, y0), min(canvas.width - 1, x1), min(canvas.height - 1, y1))
    width = max(2, round(min(canvas.size) / 120))
    draw.rectangle(edge, outline=_BOX, width=width)
    middle_x, middle_y = (x0 + x1) / 2, (y0 + y1) / 2
    half_x, half_y = (
        axis.jump / 2 * size / resized
        for axis, size, resized in (
            (field.cols, frame.width, frame.resized_width),
            (field.rows, frame.height, frame.resized_height),
        )
    )
    draw.rectangle(
        (middle_x - half_x, middle_y - half_y, middle_x + half_x, middle_y + half_y),
        outline=(255, 255, 255),
        width=width,
    )
    return canvas


def _draw_cells(pixels: np.ndarray) -> PIL.Image.Image:
    image = PIL.Image.fromarray(pixels)
    scale = max(1, 190 // max(image.size))
    return image.resize((image.width * scale, image.height * scale), PIL.Image.Resampling.NEAREST)


def _draw_bar(value: float, top: float) -> PIL.Image.Image:
    """Draw a signed number as a bar to the right (for) or to the left (against) of a middle line."""
    side = 190
    image = PIL.Image.new("RGB", (side, side), (244, 243, 240))
    draw = ImageDraw.Draw(image)
    middle = side // 2
    length = round((middle - 12) * float(np.clip(value / top, -1, 1))) if top > 0 else 0
    colour = tuple(int(v) for v in apply_contrast_colormap(np.array([1.0 if value > 0 else -1.0]))[0])
    draw.rectangle(
        (min(middle, middle + length), middle - 16, max(middle, middle + length), middle + 16), fill=colour
    )
    draw.line((middle, 30, middle, side - 30), fill=(120, 116, 128), width=1)
    return image


def _format_range(values: np.ndarray) -> str:
    return f"{values.min():.3g} … {values.max():.3g}"
