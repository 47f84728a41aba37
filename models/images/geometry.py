"""How an image becomes a tensor.

This is the only place that knows resize, crop and margins. Training, service and batch jobs prepare images
here, and every heatmap returns through the :class:`Frame` that its image left by, so it cannot land beside
the object.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode, functional as F

from models.errors import BundleError, ImageTooLarge
from models.images.decode import MAX_SIDE, Image, read_image
from models.images.frame import Frame

Interpolation = Literal["bilinear", "bicubic"]
View = Literal["crop", "whole", "pad"]
VIEWS: tuple[View, ...] = get_args(View)
"""What of an image the model sees: its centre, the whole of it resized to the input without regard to its
shape, or the whole of it in its shape with margins of the mean colour."""

_TORCHVISION = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}
_PILLOW = {"bilinear": PIL.Image.Resampling.BILINEAR, "bicubic": PIL.Image.Resampling.BICUBIC}
_EXTREME_ASPECT = 12.0
_MAX_SIZE = 2_048
_MAX_INPUT = 1_024
"""Pixels a side of the model's input: a forward of a larger one takes gigabytes."""


def _is_extreme(image: Image) -> bool:
    """Return whether resizing the whole image would make it huge."""
    return max(image.width, image.height) > _EXTREME_ASPECT * min(image.width, image.height)


@dataclass(frozen=True, slots=True)
class Geometry:
    """A model's preprocessing as data: resize, crop or pad to the input, scale to [0, 1], normalise."""

    resize: int
    """Short side after resizing, pixels, where the centre is cropped."""
    crop_height: int
    crop_width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Interpolation
    view: View = "crop"

    def __post_init__(self) -> None:
        """Refuse what could not be prepared: unknown names, a crop larger than the resized image."""
        sizes = (self.resize, self.crop_height, self.crop_width)
        if not all(type(size) is int and size <= _MAX_SIZE for size in sizes):
            raise BundleError(f"Sizes must be whole numbers of at most {_MAX_SIZE} pixels, not {sizes}.")
        if max(self.crop_height, self.crop_width) > _MAX_INPUT:
            raise BundleError(f"The input must have sides of at most {_MAX_INPUT} pixels, not {sizes[1:]}.")
        if self.interpolation not in _TORCHVISION:
            raise BundleError(
                f"Unknown interpolation {self.interpolation!r}; choose one of: bilinear, bicubic."
            )
        if self.view not in VIEWS:
            raise BundleError(f"Unknown view {self.view!r}; choose one of: {', '.join(VIEWS)}.")
        sides = (self.crop_height, self.crop_width)
        if not 0 < min(sides) <= max(sides) <= self.resize:
            raise BundleError(
                f"A crop of {self.crop_height} x {self.crop_width} does not fit a short side of {self.resize}"
            )
        if min(self.std) <= 0:
            raise BundleError(f"Each standard deviation must be above 0, not {self.std}.")

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Geometry:
        """Rebuild from :meth:`to_dict`; raises BundleError when fields are missing, unknown or of the wrong
        kind.
        """
        try:
            fields = dict(data)
            for name in ("mean", "std"):
                red, green, blue = (float(value) for value in fields[name])
                fields[name] = (red, green, blue)
            return cls(**fields)
        except (TypeError, KeyError, ValueError) as error:
            raise BundleError(f"The geometry {data!r} is not complete: {error}.") from error

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)

    @property
    def mean_colour(self) -> tuple[int, int, int]:
        """The colour of margins and covers, 0 to 255, which normalisation maps to about zero."""
        red, green, blue = (round(channel * 255) for channel in self.mean)
        return red, green, blue

    def frame(self, width: int, height: int) -> Frame:
        """Return where an image of this size goes; for a crop the arithmetic is torchvision's (long side
        truncated, crop rounded).
        """
        resized_width, resized_height = self._resized_size(width, height)
        return Frame(
            width=width,
            height=height,
            resized_width=resized_width,
            resized_height=resized_height,
            left=round((resized_width - self.crop_width) / 2.0),
            top=round((resized_height - self.crop_height) / 2.0),
            crop_width=self.crop_width,
            crop_height=self.crop_height,
        )

    def _resized_size(self, width: int, height: int) -> tuple[int, int]:
        if self.view == "whole":
            return self.crop_width, self.crop_height
        if self.view == "pad":
            scale = min(self.crop_width / width, self.crop_height / height)
            return max(1, round(width * scale)), max(1, round(height * scale))
        if width <= height:
            return self.resize, int(self.resize * height / width)
        return int(self.resize * width / height), self.resize

    def see(self, image: Image) -> tuple[PIL.Image.Image, Frame]:
        """Return what the model will see, as an image (before normalisation), and its Frame."""
        return self.see_moved(image, 0, 0)

    def see_moved(self, image: Image, right: int, down: int) -> tuple[PIL.Image.Image, Frame]:
        """Do as :meth:`see`, with the input moved by some pixels over the resized image; beyond its edge are
        the margins' colour or, without margins, the edge's pixels again.
        """
        frame = self.frame(image.width, image.height)
        if self.view == "crop" and _is_extreme(image):
            # Beyond its short side there is nothing to move to; along the long one the crop stays inside.
            left = min(max(frame.left + right, 0), frame.resized_width - frame.crop_width)
            top = min(max(frame.top + down, 0), frame.resized_height - frame.crop_height)
            inside = replace(frame, left=left, top=top)
            return self._see_extreme(image, inside), inside
        moved = replace(frame, left=frame.left + right, top=frame.top + down)
        resized = self._resized(image.pil, frame)
        if self.view == "pad":
            return self._on_margins(resized, moved), moved
        margin = max(abs(right), abs(down))
        padded = F.pad(resized, [margin], padding_mode="edge") if margin else resized
        corner = (moved.left + margin, moved.top + margin)
        box = (*corner, corner[0] + self.crop_width, corner[1] + self.crop_height)
        return padded.crop(box), moved

    def fit(self, image: PIL.Image.Image) -> PIL.Image.Image:
        """Return the whole of an image, or of a part of one, as the model's input: in its shape where there
        are margins, resized without regard to it otherwise.
        """
        whole = self if self.view == "pad" else replace(self, view="whole")
        frame = whole.frame(*image.size)
        resized = whole._resized(image, frame)
        return whole._on_margins(resized, frame) if whole.view == "pad" else resized

    def _resized(self, image: PIL.Image.Image, frame: Frame) -> PIL.Image.Image:
        size = [frame.resized_height, frame.resized_width]
        resized: PIL.Image.Image = F.resize(
            image, size, interpolation=_TORCHVISION[self.interpolation], antialias=True
        )
        return resized

    def _on_margins(self, resized: PIL.Image.Image, frame: Frame) -> PIL.Image.Image:
        canvas = PIL.Image.new("RGB", (self.crop_width, self.crop_height), self.mean_colour)
        canvas.paste(resized, (-frame.left, -frame.top))
        return canvas

    def _see_extreme(self, image: Image, frame: Frame) -> PIL.Image.Image:
        """Resize only what the crop needs of a very long image: 1 x 5000 would become 327 MP."""
        if max(image.width, image.height) > MAX_SIDE:
            raise ImageTooLarge(
                f"The picture is {image.width} x {image.height}; its limit is {MAX_SIDE:,} a side."
            )
        # Shares of the image, which may have been decoded smaller than it is.
        across, down = image.pil.width / image.width, image.pil.height / image.height
        x0, y0, x1, y1 = frame.seen_box
        return image.pil.resize(
            (self.crop_width, self.crop_height),
            _PILLOW[self.interpolation],
            box=(x0 * across, y0 * down, x1 * across, y1 * down),
            reducing_gap=None,
        )

    def normalise(self, image: PIL.Image.Image) -> Tensor:
        """Return an input as float32 (3, height, width): scaled to [0, 1], then (x - mean) / std."""
        scaled = F.convert_image_dtype(F.pil_to_tensor(image), torch.float32)
        normalised: Tensor = F.normalize(scaled, mean=list(self.mean), std=list(self.std))
        return normalised

    def prepare_files(self, paths: Iterable[Path]) -> Tensor:
        """Read image files and prepare them as one batch (N, 3, height, width)."""
        return torch.stack([self.prepare(read_image(path))[0] for path in paths])

    def prepare(self, image: Image) -> tuple[Tensor, Frame]:
        """Return the tensor (3, height, width) that the model takes, and the Frame that leads back to the
        image.
        """
        pil_image, frame = self.see(image)
        return self.normalise(pil_image), frame
