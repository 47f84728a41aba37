"""A network drawn as what flows through it: each block a box as high as its map is and as wide as it is deep
(topic of depth growing as the image shrinks).
"""

from __future__ import annotations

import math

import PIL.Image
from PIL import ImageDraw, ImageFont

from models.networks.summary import BlockSummary, NetworkSummary

_PAPER, _INK, _FAINT = (250, 249, 246), (32, 30, 40), (120, 116, 128)
_COLOURS = {
    "attention": (204, 121, 167),
    "inception": (0, 114, 178),
    "dense": (0, 158, 115),
    "inverted bottleneck": (86, 180, 233),
    "bottleneck": (230, 159, 0),
    "residual": (213, 140, 70),
}
"""Of Okabe and Ito's colours, which all common colour blindness leaves apart."""
_PLAIN = (170, 166, 176)
_HEIGHT, _GAP, _TALLEST = 370, 12, 170


def draw_architecture(anatomy: NetworkSummary) -> PIL.Image.Image:
    """Draw the blocks from left to right with H x W x C under each, its share of parameters and
    multiply-adds, and a legend of the kinds.
    """
    widths = [_width(block) for block in anatomy.blocks]
    total = sum(max(width, 74) + _GAP for width in widths) + 110
    image = PIL.Image.new("RGB", (max(total, 640), _HEIGHT), _PAPER)
    draw = ImageDraw.Draw(image)
    height, width, channels = anatomy.input
    title = (
        f"{anatomy.backbone}: {height} x {width} x {channels} in, "
        f"{anatomy.parameters / 1e6:.1f} M parameters, {anatomy.multiply_adds / 1e9:.2f} G multiply-adds"
    )
    draw.text((14, 10), title, _INK, ImageFont.load_default(18))
    x = 14
    for block, wide in zip(anatomy.blocks, widths, strict=True):
        cell = max(wide, 74)
        _box(draw, anatomy, block, x, wide, cell)
        x += cell + _GAP
    _head(draw, anatomy.head, x)
    _legend(draw, anatomy)
    return image


def _width(block: BlockSummary) -> int:
    return max(6, round(9 * math.log2(max(block.shape[2], 2)) - 26))


def _box(
    draw: ImageDraw.ImageDraw, anatomy: NetworkSummary, block: BlockSummary, x: int, wide: int, cell: int
) -> None:
    tall = max(5, round(_TALLEST * block.shape[0] / anatomy.input[0] * 1.6))
    tall = min(tall, _TALLEST)
    base = 230
    left = x + (cell - wide) // 2
    draw.rectangle((left, base - tall, left + wide, base), fill=_colour(block), outline=_INK)
    small, tiny = ImageFont.load_default(12), ImageFont.load_default(11)
    rows, cols, channels = block.shape
    field = f"{block.field.rows.size}" + (" and more" if block.field.sees_all else "")
    lines = (
        (block.name, _INK, small),
        (f"{rows} x {cols}", _FAINT, tiny),
        (f"x {channels}", _FAINT, tiny),
        (f"sees {field} px", _FAINT, tiny),
        (f"{block.parameters / max(anatomy.parameters, 1):.0%} weights", _FAINT, tiny),
        (f"{block.multiply_adds / max(anatomy.multiply_adds, 1):.0%} work", _FAINT, tiny),
    )
    for number, (text, colour, font) in enumerate(lines):
        draw.text((x + cell // 2, base + 10 + 15 * number), text[:16], colour, font, anchor="ma")


def _head(draw: ImageDraw.ImageDraw, head: BlockSummary, x: int) -> None:
    draw.ellipse((x + 24, 202, x + 52, 230), fill=_PLAIN, outline=_INK)
    draw.text((x + 38, 240), "head", _INK, ImageFont.load_default(12), anchor="ma")
    draw.text((x + 38, 255), f"{head.shape[0]} logits", _FAINT, ImageFont.load_default(11), anchor="ma")


def _legend(draw: ImageDraw.ImageDraw, anatomy: NetworkSummary) -> None:
    kinds = dict.fromkeys(_kind(block) for block in anatomy.blocks)
    x = 14
    for kind in kinds:
        draw.rectangle((x, 346, x + 14, 358), fill=_COLOURS.get(kind, _PLAIN), outline=_INK)
        draw.text((x + 20, 344), kind, _INK, ImageFont.load_default(12))
        x += 34 + round(draw.textlength(kind, font=ImageFont.load_default(12)))


def _kind(block: BlockSummary) -> str:
    return next((kind for kind in _COLOURS if kind in block.tags), "plain")


def _colour(block: BlockSummary) -> tuple[int, int, int]:
    return _COLOURS.get(_kind(block), _PLAIN)
