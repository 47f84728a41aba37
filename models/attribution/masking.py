"""What is put in the place of a covered part: a blur of it, or one mean colour.

A blur keeps colour and light, so that little is added that was not there; the mean leaves less behind but is
itself a sight. What a model answers to either is a fact about the model, not about the image.
"""

from __future__ import annotations

from typing import Literal, get_args

import PIL.Image
import PIL.ImageFilter
import PIL.ImageStat
from torch import Tensor
from torchvision.transforms import functional as F

from models.errors import UnknownChoice

Cover = Literal["blur", "mean"]
COVERS: tuple[Cover, ...] = get_args(Cover)

_BLUR_SHARE = 0.07
"""Standard deviation of the blur, of the shorter side: an object's parts are gone, its colours are not."""


def check_cover(how: str) -> Cover:
    """Return the cover of that name; raises UnknownChoice."""
    for cover in COVERS:
        if cover == how:
            return cover
    raise UnknownChoice("cover", how, COVERS)


def covered_input(x: Tensor, how: Cover) -> Tensor:
    """Return a model's input (N, 3, H, W), covered all over."""
    if how == "mean":
        return x.mean(dim=(2, 3), keepdim=True).expand_as(x)
    sigma = _BLUR_SHARE * min(x.shape[2:])
    side = 2 * round(2 * sigma) + 1
    blurred: Tensor = F.gaussian_blur(
        x, [min(side, _odd(x.shape[3])), min(side, _odd(x.shape[2]))], [sigma, sigma]
    )
    return blurred


def covered_image(image: PIL.Image.Image, how: Cover) -> PIL.Image.Image:
    """Return an image, covered all over."""
    if how == "mean":
        red, green, blue = (round(value) for value in PIL.ImageStat.Stat(image).mean)
        return PIL.Image.new("RGB", image.size, (red, green, blue))
    return image.filter(PIL.ImageFilter.GaussianBlur(_BLUR_SHARE * min(image.size)))


def _odd(side: int) -> int:
    """Return the largest odd kernel that reflection at the edges allows."""
    return side if side % 2 else side - 1
