"""Varied views of training images, and batches of them read ahead of the one who trains.

What a view does to an image is drawn from (seed, image, view) alone: the same view is the same on every
thread, in every order and after every restart, and nobody else's random numbers are touched.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from models.images.decode import read_image
from models.images.geometry import Geometry
from models.visualization.contact_sheet import Tile, draw_contact_sheet
from pipelines.config.schema import Augmentation, TrainConfig
from pipelines.data.dataset import Dataset, Sample
from pipelines.data.mitigation import load_mitigation

_ASPECT = (3 / 4, 4 / 3)
"""Narrowest and widest crop, width to height before it is resized to the model's input."""


@dataclass(frozen=True, slots=True)
class AugmentedView:
    """The changes that one view makes to one image, in this order; boxes are shares of the image or of the
    model's input.
    """

    rotate_degrees: float
    shift: tuple[float, float]
    shear_degrees: tuple[float, float]
    crop: tuple[float, float, float, float]
    """x0, y0, width, height."""
    mirror: bool
    upside_down: bool
    brightness: float
    contrast: float
    saturation: float
    erased: tuple[float, float, float, float] | None
    mitigation: tuple[float, float]
    """What decides whether a found part is taken out or laid in, and which one."""


def draw_view(policy: Augmentation, rng: np.random.Generator, aspect: float) -> AugmentedView:
    """Draw a view within the policy; ``aspect`` is the image's width to height, or 1 where crops shall have
    its shape.

    Every number is drawn whether or not it is used, so that turning one change off leaves the others as they
    were.
    """
    turn, dx, dy, shear_x, shear_y = rng.uniform(-1, 1, 5)
    crop = _box(rng, rng.uniform(policy.min_crop_area, 1.0), aspect)
    mirror, upside_down, covered = rng.random(3) < 0.5
    brightness, contrast, saturation = 1 + policy.colour * rng.uniform(-1, 1, 3)
    hole = _box(rng, max(policy.erase, 1e-6) * rng.uniform(0.1, 1.0), 1.0)
    return AugmentedView(
        rotate_degrees=float(turn * policy.rotate_degrees),
        shift=(float(dx * policy.shift), float(dy * policy.shift)),
        shear_degrees=(float(shear_x * policy.shear_degrees), float(shear_y * policy.shear_degrees)),
        crop=crop,
        mirror=bool(policy.flip and mirror),
        upside_down=bool(policy.flip_vertical and upside_down),
        brightness=float(brightness),
        contrast=float(contrast),
        saturation=float(saturation),
        erased=hole if policy.erase and covered else None,
        mitigation=(float(rng.random()), float(rng.random())),
    )


def _box(rng: np.random.Generator, area: float, aspect: float) -> tuple[float, float, float, float]:
    """Return a box of that share of the area at a random place; its shape varies within _ASPECT as far as it
    fits.
    """
    shape = math.exp(rng.uniform(math.log(_ASPECT[0]), math.log(_ASPECT[1]))) / aspect
    # A side that would reach beyond the image ends at its edge, and the other takes what is left of the
    # area.
    width = min(max(math.sqrt(area * shape), area), 1.0)
    height = area / width
    return float(rng.uniform(0, 1 - width)), float(rng.uniform(0, 1 - height)), width, height


class Augmenter:
    """A maker of random views of an image, as the geometry's tensors."""

    def __init__(self, geometry: Geometry, policy: Augmentation, *, seed: int) -> None:
        self.geometry, self.policy, self.seed = geometry, policy, seed
        self.mitigation = load_mitigation(Path(policy.mitigation)) if policy.mitigation else None

    def view(self, sample: Sample, number: int, aspect: float) -> AugmentedView:
        """Return what view ``number`` (from 1) does to an image of that width to height.

        A model that crops the centre is trained on crops of about the input's shape; one that sees the whole
        image on crops of about the image's, which are stretched or padded as the whole will be.
        """
        digest = hashlib.sha256(f"{self.seed}/{sample.sha256}/{number}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:16], "big"))
        return draw_view(self.policy, rng, aspect if self.geometry.view == "crop" else 1.0)

    def image(self, sample: Sample, number: int) -> PIL.Image.Image:
        """Return a view of an image: view 0 as the model will see it in service, the others varied."""
        image = read_image(sample.path)
        if number == 0:
            return self.geometry.see(image)[0]
        view = self.view(sample, number, image.width / image.height)
        varied = image.pil
        if self.mitigation is not None:
            varied = self.mitigation.apply(varied, sample.sha256, view.mitigation)
        return self._vary(varied, view)

    def tensor(self, sample: Sample, number: int) -> Tensor:
        """Return (3, H, W) float32."""
        return self.geometry.normalise(self.image(sample, number))

    def _vary(self, image: PIL.Image.Image, view: AugmentedView) -> PIL.Image.Image:
        width, height = image.size
        if view.rotate_degrees or any(view.shift) or any(view.shear_degrees):
            image = TF.affine(
                image,
                angle=view.rotate_degrees,
                translate=[round(view.shift[0] * width), round(view.shift[1] * height)],
                scale=1.0,
                shear=list(view.shear_degrees),
                interpolation=InterpolationMode.BILINEAR,
                fill=list(self.geometry.mean_colour),
            )
        left, top, wide, high = _pixels(view.crop, width, height)
        image = self.geometry.fit(image.crop((left, top, left + wide, top + high)))
        if view.mirror:
            image = TF.horizontal_flip(image)
        if view.upside_down:
            image = TF.vertical_flip(image)
        if self.policy.colour:
            image = TF.adjust_brightness(image, view.brightness)
            image = TF.adjust_contrast(image, view.contrast)
            image = TF.adjust_saturation(image, view.saturation)
        if view.erased is not None:
            left, top, wide, high = _pixels(view.erased, *image.size)
            image.paste(self.geometry.mean_colour, (left, top, left + wide, top + high))
        varied: PIL.Image.Image = image
        return varied


def _pixels(box: tuple[float, float, float, float], width: int, height: int) -> tuple[int, int, int, int]:
    """Return (left, top, width, height) in whole pixels, at least one each way."""
    wide, high = max(1, round(box[2] * width)), max(1, round(box[3] * height))
    return min(round(box[0] * width), width - wide), min(round(box[1] * height), height - high), wide, high


def draw_views_figure(geometry: Geometry, data: Dataset, config: TrainConfig) -> PIL.Image.Image:
    """Return a few training images, each as the model will see it in service and in three varied views."""
    augmenter = Augmenter(geometry, config.augmentation, seed=config.seed)
    by_class: dict[tuple[int, ...], Sample] = {}
    for sample in data.train:
        by_class.setdefault(sample.labels, sample)
    tiles = [
        Tile(
            augmenter.image(sample, view),
            " + ".join(data.classes[label] for label in labels) or "none",
            "as served" if view == 0 else f"view {view}",
        )
        for labels, sample in list(by_class.items())[:6]
        for view in range(4)
    ]
    return draw_contact_sheet(tiles, columns=8, side=150, title=f"Training views of {data.name}")


def read_batches(
    augmenter: Augmenter, samples: Sequence[Sample], views: Sequence[int], batch_size: int
) -> Iterator[Tensor]:
    """Return tensors (N, 3, H, W) in the order of the samples, read by threads while the caller works.

    Bounded: at most two batches are in memory beside the caller's.
    """

    def read(start: int) -> Tensor:
        part = range(start, min(start + batch_size, len(samples)))
        return torch.stack([augmenter.tensor(samples[i], views[i]) for i in part])

    coming: deque[Future[Tensor]] = deque()
    starts = iter(range(0, len(samples), batch_size))
    with ThreadPoolExecutor(min(2, os.cpu_count() or 1), thread_name_prefix="read") as readers:
        try:
            for start in starts:
                coming.append(readers.submit(read, start))
                if len(coming) == 2:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:
            for waiting in coming:
                waiting.cancel()
