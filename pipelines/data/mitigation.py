"""What takes a found shortcut away in training: erased from pictures that have it, laid into others.

A folder that ``lucida shortcuts --mitigate`` writes: mitigation.json with the place of each found part in
each picture that has it, and the parts themselves as PNG files. A view of a picture that has a part loses
it half of the time; a view of any other picture gets one half of the time, at its own place.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import PIL.Image

from models.errors import ConfigError
from models.images.decode import read_image

MITIGATION_FILE = "mitigation.json"
FORMAT = 1
_LIKELY = 0.5

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 as shares of the picture."""


@dataclass(frozen=True)
class Patch:
    """A part that was cut out of a picture, with its place there."""

    box: Box
    image: PIL.Image.Image = field(repr=False)


@dataclass(frozen=True)
class Mitigation:
    """The found parts of a data set's pictures."""

    digest: str
    places: dict[str, tuple[Box, ...]] = field(repr=False)
    """By the SHA-256 of a picture's file: where its parts are."""
    patches: tuple[Patch, ...] = field(repr=False)

    def apply(self, image: PIL.Image.Image, sha256: str, chance: tuple[float, float]) -> PIL.Image.Image:
        """Return a view's picture with its parts erased, or with a part laid in, or as it is; ``chance`` are
        two numbers from 0 to 1 that decide.
        """
        likely, which = chance
        if likely >= _LIKELY:
            return image
        changed = image.copy()
        if sha256 in self.places:
            for box in self.places[sha256]:
                _erase(changed, box)
        elif self.patches:
            patch = self.patches[min(int(which * len(self.patches)), len(self.patches) - 1)]
            left, top, right, bottom = _pixels(patch.box, changed.size)
            laid = patch.image.resize((right - left, bottom - top), PIL.Image.Resampling.BICUBIC)
            changed.paste(laid, (left, top))
        return changed


@cache
def load_mitigation(folder: Path) -> Mitigation:
    """Read a folder that ``lucida shortcuts --mitigate`` wrote; raises ConfigError."""
    try:
        text = (folder / MITIGATION_FILE).read_bytes()
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise ConfigError(
                f"{folder} has format {content['format']!r}; this version reads format {FORMAT}."
            )
        places = {
            str(name): tuple(_checked_box(box) for box in boxes) for name, boxes in content["places"].items()
        }
        files = [(folder / f"part-{n:03d}.png", box) for n, box in enumerate(content["patches"])]
        digest = hashlib.sha256(text)
        for path, _ in files:
            digest.update(path.read_bytes())
        patches = tuple(Patch(_checked_box(box), read_image(path).pil) for path, box in files)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder} is no folder that `lucida shortcuts --mitigate` wrote: {type(error).__name__} {error}."
        ) from error
    return Mitigation(digest.hexdigest(), places, patches)


def _checked_box(box: object) -> Box:
    x0, y0, x1, y1 = (float(value) for value in box)  # type: ignore[attr-defined]
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise ValueError(f"the box {box} lies outside of the picture")
    return x0, y0, x1, y1


def _pixels(box: Box, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return left, top, right, bottom in whole pixels, at least one each way."""
    left, top = (min(int(box[n] * size[n]), size[n] - 1) for n in (0, 1))
    right, bottom = max(left + 1, round(box[2] * size[0])), max(top + 1, round(box[3] * size[1]))
    return left, top, right, bottom


def _erase(image: PIL.Image.Image, box: Box) -> None:
    """Fill a part with the colours above and below it, one running into the other."""
    left, top, right, bottom = _pixels(box, image.size)
    width, height = right - left, bottom - top
    pixels = np.asarray(image)
    above = pixels[max(0, top - 3) : top, left:right].reshape(-1, 3)
    below = pixels[bottom : bottom + 3, left:right].reshape(-1, 3)
    ends = [side.mean(axis=0) for side in (above, below) if len(side)]
    if not ends:
        ends = [pixels.reshape(-1, 3).mean(axis=0)]
    ramp = np.linspace(0, 1, height)[:, None, None]
    filling = np.broadcast_to(ends[0] * (1 - ramp) + ends[-1] * ramp, (height, width, 3))
    image.paste(PIL.Image.fromarray(filling.astype(np.uint8)), (left, top))
