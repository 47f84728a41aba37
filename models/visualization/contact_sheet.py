"""Many small images on one sheet, each with a caption that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from PIL import ImageDraw, ImageFont

from models.introspection.activations import BlockActivation
from models.visualization.colormaps import apply_evidence_colormap

_PAPER, _INK, _FAINT = (250, 249, 246), (32, 30, 40), (120, 116, 128)


@dataclass(frozen=True, slots=True)
class Tile:
    """An image of a sheet with up to two lines under it."""

    image: PIL.Image.Image
    caption: str = ""
    detail: str = ""


def draw_contact_sheet(
    tiles: Sequence[Tile], *, columns: int, side: int = 168, title: str = ""
) -> PIL.Image.Image:
    """Lay the tiles out in rows; each image is fitted into a square of ``side`` pixels, never cut or
    stretched.
    """
    gap, line = 14, 17
    captioned = any(tile.caption for tile in tiles)
    detailed = any(tile.detail for tile in tiles)
    images = [_fit_tile(tile.image, side) for tile in tiles]
    tall = max((image.height for image in images), default=side)
    cell = tall + (line if captioned else 0) + (line if detailed else 0) + gap
    top = gap + (30 if title else 0)
    rows = -(-len(tiles) // columns) if tiles else 0
    sheet = PIL.Image.new("RGB", (gap + columns * (side + gap), top + max(rows, 1) * cell + 4), _PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text(
            (gap, gap - 4),
            _fit_text(draw, title, sheet.width - 2 * gap, 18),
            _INK,
            ImageFont.load_default(18),
        )
    for position, tile in enumerate(tiles):
        x, y = gap + (position % columns) * (side + gap), top + (position // columns) * cell
        fitted = images[position]
        sheet.paste(fitted, (x + (side - fitted.width) // 2, y + tall - fitted.height))
        font = ImageFont.load_default(13)
        draw.text((x, y + tall + 2), _fit_text(draw, tile.caption, side, 13), _INK, font)
        draw.text((x, y + tall + 2 + line), _fit_text(draw, tile.detail, side, 13), _FAINT, font)
    return sheet


def draw_activation_sheet(blocks: Sequence[BlockActivation], *, columns: int = 8) -> PIL.Image.Image:
    """Draw the strongest channels of each block, a row or more a block, on one scale within the block."""
    tiles: list[Tile] = []
    for block in blocks:
        top = max((channel.maximum for channel in block.strongest), default=0.0)
        for channel in block.strongest:
            scaled = np.maximum(channel.values, 0.0) / top if top > 0.0 else np.zeros_like(channel.values)
            image = PIL.Image.fromarray(apply_evidence_colormap(scaled)).resize(
                (168, 168), PIL.Image.Resampling.NEAREST
            )
            _, rows, cols = block.shape
            tiles.append(
                Tile(image, f"{block.block}  #{channel.index}", f"{rows} x {cols}, max {channel.maximum:.3g}")
            )
        tiles += [Tile(PIL.Image.new("RGB", (1, 1), _PAPER))] * (-len(tiles) % columns)
    return draw_contact_sheet(
        tiles, columns=columns, title="Strongest channels of each block (one scale a block)"
    )


def _fit_tile(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    scale = side / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    return image.convert("RGB").resize(size, PIL.Image.Resampling.LANCZOS)


def _fit_text(draw: ImageDraw.ImageDraw, text: str, width: int, size: int) -> str:
    font = ImageFont.load_default(size)
    text = " ".join(text.split())
    if draw.textlength(text, font=font) <= width:
        return text
    while text and draw.textlength(text + "…", font=font) > width:
        text = text[:-1]
    return text + "…"
