"""What the model would say if a part of the image were covered: a question, an experiment, an answer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import PIL.Image

from models.attribution.forward import predict_logits
from models.attribution.masking import Cover, check_cover, covered_image
from models.attribution.result import STATUS_MEANINGS, Attribution
from models.backends.base import Backend
from models.errors import ExplanationError
from models.images.decode import Image
from models.images.frame import Frame
from models.networks.predictions import Prediction, rank_classes

Box = tuple[float, float, float, float]
_MOST_SIDE = 2_048


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """The change of one class's score."""

    label: str
    index: int
    before: float
    after: float

    @property
    def change(self) -> float:
        """After less before."""
        return self.after - self.before


@dataclass(frozen=True, slots=True)
class CoverTest:
    """The scores with and without a part of the image."""

    changes: tuple[ScoreChange, ...]
    """Every class, in the order of the scores before."""
    cover: Cover
    share: float
    """Of what the model sees, how much was covered, 0 to 1."""
    covered: Image = field(repr=False)
    """The upright image with its part covered."""


def limit_size(image: Image) -> tuple[Image, float]:
    """Return the image for an experiment, at most 2,048 pixels a side, and how much smaller it is: covering
    50 megapixels would take seconds, and the network sees a few hundred pixels a side.
    """
    longest = max(image.width, image.height)
    if longest <= _MOST_SIDE and image.full_size is None:
        return image, 1.0
    scale = min(1.0, _MOST_SIDE / longest)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    smaller = image.pil.resize(size, PIL.Image.Resampling.BICUBIC, reducing_gap=3.0)
    return replace(image, pil=smaller, full_size=None), scale


def mask_from_box(frame: Frame, box: Box) -> np.ndarray:
    """Return a box (x0, y0, x1, y1) in pixels of the upright image as a boolean mask (height, width).

    Raises ExplanationError for a box without area, or that the model never saw any of.
    """
    x0, y0, x1, y1 = box
    if not all(map(math.isfinite, box)) or x1 <= x0 or y1 <= y0:
        raise ExplanationError(f"The box {box} has no area; it is x0, y0, x1, y1 with x0 < x1 and y0 < y1.")
    mask = np.zeros((frame.height, frame.width), dtype=bool)
    mask[_pixels(y0, y1, frame.height), _pixels(x0, x1, frame.width)] = True
    if not (mask & frame.seen()).any():
        left, top, right, bottom = (round(edge) for edge in frame.seen_box)
        raise ExplanationError(
            f"The box {box} lies outside of what the model saw: {left}, {top}, {right}, {bottom}."
        )
    return mask


def mask_from_map(frame: Frame, attribution: Attribution, *, share: float = 0.15) -> np.ndarray:
    """Return the hottest part of a map, as a mask (height, width) over at most that share of what the model
    saw, and never more than has positive evidence.

    Raises ExplanationError for an empty map or a share outside 0 to 1.
    """
    if attribution.status != "ok":
        raise ExplanationError(f"There is no hottest region: {STATUS_MEANINGS[attribution.status]}")
    if not 0 < share < 1:
        raise ExplanationError(f"The share is {share}; it must lie between 0 and 1.")
    laid = frame.unwarp(attribution.values)
    seen = frame.seen()
    edge = np.quantile(laid[seen], 1 - share)
    mask: np.ndarray = seen & (np.nan_to_num(laid, nan=-np.inf) >= edge) & (np.nan_to_num(laid) > 0)
    if not mask.any():
        raise ExplanationError(f"The picture is too small to cover {share:.0%} of what the model sees of it.")
    return mask


def run_cover_test(backend: Backend, image: Image, mask: np.ndarray, *, cover: str = "blur") -> CoverTest:
    """Cover what ``mask`` (height, width) marks of the upright image, and ask the model again.

    Raises UnknownChoice for the cover.
    """
    how = check_cover(cover)
    whole = covered_image(image.pil, how)
    edited = PIL.Image.composite(whole, image.pil, PIL.Image.fromarray((mask * 255).astype(np.uint8)))
    changed = replace(image, pil=edited)
    frame = backend.model.geometry.frame(image.width, image.height)
    seen = frame.seen()
    before, after = (_scores(backend, version) for version in (image, changed))
    later = {item.index: item.score for item in after}
    return CoverTest(
        changes=tuple(ScoreChange(item.label, item.index, item.score, later[item.index]) for item in before),
        cover=how,
        share=float(mask[seen].mean()),
        covered=changed,
    )


def _scores(backend: Backend, image: Image) -> list[Prediction]:
    model = backend.model
    x, _ = model.geometry.prepare(image)
    return rank_classes(predict_logits(backend, x[None])[0], model.classes, model.scoring)


def _pixels(start: float, stop: float, count: int) -> slice:
    """Return the pixels that an interval touches."""
    return slice(max(0, math.floor(start)), max(0, min(count, math.ceil(stop))))
