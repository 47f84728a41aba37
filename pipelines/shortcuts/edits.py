"""Edits of a picture: a part covered or laid into another picture, or the light of its border changed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import PIL.Image

from models.attribution.masking import covered_image
from pipelines.shortcuts.evidence import SeenImage

_RING = 9
"""Pixels around a part whose mean colour fills it."""
_TRIES, _LITTLE = 40, 0.02
_BORDER = 0.06
"""Of the shorter side: how wide the border is whose colour is read."""


class Editor(Protocol):
    """The edits that a suspicion is put to the test with."""

    def remove(self, image: SeenImage, donor: SeenImage) -> list[np.ndarray]:
        """Return a picture without what is suspected, in several ways; ``donor`` has not got it."""
        ...

    def change_elsewhere(
        self, image: SeenImage, donor: SeenImage, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Return a picture with as large a change that leaves what is suspected."""
        ...

    def change_other(self, other: SeenImage, image: SeenImage, donor: SeenImage) -> list[np.ndarray]:
        """Return a picture of another class, changed where ``image`` has what is suspected."""
        ...

    def add(self, target: SeenImage, source: SeenImage, image: SeenImage) -> np.ndarray:
        """Return a picture with what ``source`` has where ``image`` has what is suspected."""
        ...


@dataclass(frozen=True)
class PartEditor:
    """Edits of a part of the picture: blurred, filled with the colour around it, or with what another
    picture has there.
    """

    masks: dict[str, np.ndarray] = field(repr=False)
    """By the name of a picture: boolean (H, W)."""

    def remove(self, image: SeenImage, donor: SeenImage) -> list[np.ndarray]:
        """Return the picture with its part filled in three ways."""
        return _fillings(image, self.masks[image.name], donor)

    def change_elsewhere(
        self, image: SeenImage, donor: SeenImage, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Return the picture with as large a part filled elsewhere, away from its objects where they are
        known, and from all that speaks for its class otherwise.
        """
        avoid = np.logical_or.reduce([self.masks[image.name], *(part.mask for part in image.parts)])
        if image.objects is not None and image.objects.any():
            avoid = self.masks[image.name] | image.objects
        return _fillings(image, _moved(self.masks[image.name], avoid, rng), donor)

    def change_other(self, other: SeenImage, image: SeenImage, donor: SeenImage) -> list[np.ndarray]:
        """Return a picture of another class, filled at the same place."""
        return _fillings(other, self.masks[image.name], donor)

    def add(self, target: SeenImage, source: SeenImage, image: SeenImage) -> np.ndarray:
        """Return a picture with what another has at the place of the part."""
        return _filled(target.pixels, self.masks[image.name], source.pixels)


@dataclass(frozen=True)
class LightEditor:
    """Edits of the colour of the light, as the border has it: the picture's channels are scaled, beside its
    objects where they are known.
    """

    usual: np.ndarray = field(repr=False)
    """(K, 3) colours of the borders of pictures of other classes."""

    def remove(self, image: SeenImage, donor: SeenImage) -> list[np.ndarray]:
        """Return the picture in the light of others."""
        return [_relit(image, border_colour(image), colour) for colour in self.usual]

    def change_elsewhere(
        self, image: SeenImage, donor: SeenImage, rng: np.random.Generator
    ) -> list[np.ndarray]:
        """Return the picture brighter and darker by as much, in its own light."""
        own = border_colour(image)
        size = float(np.mean([np.abs(_gains(own, colour) - 1).mean() for colour in self.usual]))
        return [_scaled(image, np.full(3, factor)) for factor in (1 + size, 1 - size)]

    def change_other(self, other: SeenImage, image: SeenImage, donor: SeenImage) -> list[np.ndarray]:
        """Return a picture of another class in the light of yet others."""
        return [_relit(other, border_colour(other), colour) for colour in self.usual]

    def add(self, target: SeenImage, source: SeenImage, image: SeenImage) -> np.ndarray:
        """Return a picture in the light of the source."""
        return _relit(target, border_colour(target), border_colour(source))


def border_colour(image: SeenImage) -> np.ndarray:
    """Return the mean colour (3,) of a picture's border, 0 to 255."""
    height, width = image.pixels.shape[:2]
    edge = max(1, round(_BORDER * min(height, width)))
    ring = np.ones((height, width), dtype=bool)
    ring[edge:-edge, edge:-edge] = False
    mean: np.ndarray = image.pixels[ring].mean(axis=0)
    return mean


def _relit(image: SeenImage, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    return _scaled(image, _gains(before, after))


def _gains(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    # As bright as before: brightness is not what is suspected.
    ratio = (after + 1) / (before + 1)
    gains: np.ndarray = np.clip(ratio / ratio.mean(), 0.4, 2.5)
    return gains


def _scaled(image: SeenImage, gains: np.ndarray) -> np.ndarray:
    lit = np.clip(image.pixels * gains, 0, 255)
    if image.objects is not None:
        lit = np.where(image.objects[..., None], image.pixels, lit)
    relit: np.ndarray = lit.astype(np.uint8)
    return relit


def _fillings(image: SeenImage, mask: np.ndarray, donor: SeenImage) -> list[np.ndarray]:
    blurred = np.asarray(covered_image(PIL.Image.fromarray(image.pixels), "blur"))
    around = np.broadcast_to(_colour_around(image.pixels, mask), image.pixels.shape)
    return [_filled(image.pixels, mask, filling) for filling in (blurred, around, donor.pixels)]


def _filled(pixels: np.ndarray, mask: np.ndarray, filling: np.ndarray) -> np.ndarray:
    return np.where(mask[..., None], filling, pixels).astype(np.uint8)


def _colour_around(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    ring = ndimage.binary_dilation(mask, iterations=_RING) & ~mask
    colour: np.ndarray = (pixels[ring] if ring.any() else pixels.reshape(-1, 3)).mean(axis=0)
    return colour


def _moved(mask: np.ndarray, avoid: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the part at another place of the picture, where it covers as little as can be of what is to be
    avoided.
    """
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    part = mask[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1]
    best, least = mask, 2.0
    for _ in range(_TRIES):
        top = int(rng.integers(0, mask.shape[0] - part.shape[0] + 1))
        left = int(rng.integers(0, mask.shape[1] - part.shape[1] + 1))
        overlap = float((avoid[top : top + part.shape[0], left : left + part.shape[1]] & part).mean())
        if overlap < least:
            best, least = np.zeros_like(mask), overlap
            best[top : top + part.shape[0], left : left + part.shape[1]] = part
        if overlap < _LITTLE:
            break
    return best
