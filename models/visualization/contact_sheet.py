"""Many small images on one sheet, each with a caption that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
from PIL import ImageDraw

from models.introspection.activations import BlockActivation
from models.visualization.colormaps import apply_evidence_colormap
from models.visualization.fonts import choose_font

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
        _draw_text(draw, (gap, gap - 4), title, sheet.width - 2 * gap, 18, _INK)
    for position, tile in enumerate(tiles):
        x, y = gap + (position % columns) * (side + gap), top + (position // columns) * cell
        fitted = images[position]
        sheet.paste(fitted, (x + (side - fitted.width) // 2, y + tall - fitted.height))
        _draw_text(draw, (x, y + tall + 2), tile.caption, side, 13, _INK)
        _draw_text(draw, (x, y + tall + 2 + line), tile.detail, side, 13, _FAINT)
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


def _draw_text(
    draw: ImageDraw.ImageDraw,
    place: tuple[int, int],
    text: str,
    width: int,
    size: int,
    colour: tuple[int, int, int],
) -> None:
    """Draw one line of text, ended by an ellipsis where it would be wider than ``width``."""
    text = " ".join(text.split())
    font = choose_font(text, size)
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(text + "…", font=font) > width:
            text = text[:-1]
        text += "…"
    draw.text(place, text, colour, font)
