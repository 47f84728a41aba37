"""Facts of a picture that are not its content: size, format, camera, folder, border, corners."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
import PIL.Image

from models.images.decode import Image

_SIDE, _RING, _CORNER = 96, 4, 24
"""Pixels: of the small copy that is measured, of its border, of its corners."""
_MAKE, _MODEL = 271, 272
"""EXIF tags."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Facts of one picture: numbers, and words, by name."""

    numbers: dict[str, tuple[float, ...]]
    words: dict[str, str]


def read_facts(image: Image, data: bytes, name: str) -> ImageFacts:
    """Return the facts of a decoded picture, of its file's bytes, and of its path within the source."""
    small = np.asarray(image.pil.resize((_SIDE, _SIDE), PIL.Image.Resampling.BOX), dtype=np.float32) / 255
    width, height = image.full_size or (image.width, image.height)
    numbers = {
        "size in pixels": (float(np.log(width * height)),),
        "width to height": (float(np.log(width / height)),),
        "bytes a pixel": (float(np.log(max(1, len(data)) / (width * height))),),
        "colour of the border": tuple(float(value) for value in _border(small)),
        "edges in the corners": tuple(_corners(small)),
    }
    return ImageFacts(numbers, {"format": _format(data), "camera": _camera(data), "folder": _folder(name)})


def _border(small: np.ndarray) -> np.ndarray:
    ring = np.ones(small.shape[:2], dtype=bool)
    ring[_RING:-_RING, _RING:-_RING] = False
    mean: np.ndarray = small[ring].mean(axis=0)
    return mean


def _corners(small: np.ndarray) -> list[float]:
    """Return how much the brightness changes from pixel to pixel in each corner: upper left and right, lower
    left and right; text changes it much.
    """
    grey = small.mean(axis=2)
    edges = np.abs(np.diff(grey, axis=0))[:, :-1] + np.abs(np.diff(grey, axis=1))[:-1]
    rows, cols = (slice(None, _CORNER), slice(-_CORNER, None)), (slice(None, _CORNER), slice(-_CORNER, None))
    return [float(edges[row, col].mean()) for row in rows for col in cols]


def _format(data: bytes) -> str:
    with PIL.Image.open(io.BytesIO(data)) as opened:
        return str(opened.format)


def _camera(data: bytes) -> str:
    """Return maker and model as EXIF has them; empty without."""
    try:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            exif = opened.getexif()
            words = (str(exif.get(tag, "")).strip("\0 ") for tag in (_MAKE, _MODEL))
            return " ".join(word for word in words if word)[:80]
    except (OSError, ValueError, SyntaxError):
        return ""


def _folder(name: str) -> str:
    """Return the folder above that of the class."""
    return PurePosixPath(name).parent.parent.name
