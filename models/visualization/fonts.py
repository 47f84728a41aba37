"""Fonts for names of any script: the built-in one, or one of the system's that has all their characters."""

from __future__ import annotations

from functools import lru_cache

from PIL import ImageFont
from PIL.ImageFont import FreeTypeFont

WIDE_FONTS = {
    "NotoSansCJK-Regular.ttc": "Noto Sans CJK JP",
    "NotoSansSC-Regular.otf": "Noto Sans SC",
    "DroidSansFallbackFull.ttf": "Droid Sans Fallback",
    "wqy-zenhei.ttc": "WenQuanYi Zen Hei",
    "PingFang.ttc": "PingFang SC",
    "msyh.ttc": "Microsoft YaHei",
    "arialuni.ttf": "Arial Unicode MS",
    "NotoEmoji-Regular.ttf": "Noto Emoji",
    "DejaVuSans.ttf": "DejaVu Sans",
}
"""Files and families of common fonts with many characters, on Linux, macOS and Windows."""

_IN_NO_FONT = "\U0010ffff"


def choose_font(text: str, size: int) -> FreeTypeFont | ImageFont.ImageFont:
    """Return the built-in font, or the first of the system's that has what it lacks of the text.

    Where none has, the font's own mark for a missing character, mostly a box, stands in its place.
    """
    fonts = [font for name in ("", *WIDE_FONTS) if (font := _load_font(name, size)) is not None]
    return next((font for font in fonts if _covers(font, text)), fonts[0])


@lru_cache(maxsize=64)
def _load_font(name: str, size: int) -> FreeTypeFont | ImageFont.ImageFont | None:
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


def _covers(font: FreeTypeFont | ImageFont.ImageFont, text: str) -> bool:
    missing = bytes(font.getmask(_IN_NO_FONT))
    return all(char.isspace() or bytes(font.getmask(char)) != missing for char in set(text))
