"""The pictures of a search for shortcuts, each with the parts that speak for its predicted class.

All is in the model's input as it is seen, in whole pixels, so that a part can be covered, or laid into
another picture at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import torch

from models.attribution.forward import predict_logits
from models.devices import to_numpy
from models.errors import LucidaError
from models.explainer import Explainer, ExplainOptions, Explanation
from models.images.decode import Image
from models.images.frame import Frame
from models.progress import Progress, no_progress
from pipelines.shortcuts.image_facts import ImageFacts, read_facts

_BATCH = 16
_HOT = 0.4
"""Share of a map's highest value from which on a place belongs to a part."""
_LARGEST_PART, _SMALLEST_PART = 0.3, 0.003
"""Of the input's area."""
_MOST_PARTS = 3
_MAP_SIDE = 56


@dataclass(frozen=True)
class SearchImage:
    """A picture to be searched, before it is read."""

    name: str
    read: Callable[[], tuple[Image, bytes]] = field(repr=False)
    """Returns the decoded picture and its file; raises LucidaError."""
    truth: int | None = None
    region: Callable[[tuple[int, int]], np.ndarray | None] = field(default=lambda size: None, repr=False)
    """From (width, height) to the mask of its objects, None where it is not known."""


@dataclass(frozen=True)
class EvidencePart:
    """A connected part of a picture that speaks for its predicted class."""

    mask: np.ndarray = field(repr=False)
    """Boolean (H, W) in the model's input."""
    descriptor: np.ndarray = field(repr=False)
    """(D,) the block's channels under the evidence."""
    colour: np.ndarray = field(repr=False)
    """(3,) mean, 0 to 1."""
    centre: tuple[float, float]
    """x and y, as shares of the input."""
    evidence: float
    """Share of the map's positive evidence."""


@dataclass(frozen=True)
class SeenImage:
    """A picture as the model sees it, with its evidence."""

    name: str
    pixels: np.ndarray = field(repr=False)
    """uint8 (H, W, 3)."""
    truth: int | None
    predicted: int
    log_odds: np.ndarray = field(repr=False)
    """(classes,)"""
    parts: tuple[EvidencePart, ...]
    objects: np.ndarray | None = field(repr=False)
    """Boolean (H, W): where its objects are, if that is known."""
    frame: Frame
    facts: ImageFacts
    sha256: str
    read: Callable[[], tuple[Image, bytes]] = field(repr=False)
    """Reads it again."""

    @property
    def label(self) -> int:
        """The true class, or the predicted one where the truth is not known."""
        return self.predicted if self.truth is None else self.truth


def look_at(
    explainer: Explainer, images: Sequence[SearchImage], *, progress: Progress = no_progress
) -> tuple[list[SeenImage], list[tuple[str, str]]]:
    """Return the pictures with the evidence for their predicted classes, and (name, reason) of those that
    cannot be used.
    """
    seen: list[SeenImage] = []
    failed: list[tuple[str, str]] = []
    for start in range(0, len(images), _BATCH):
        part = images[start : start + _BATCH]
        for image, result in zip(part, _explain(explainer, part), strict=True):
            if isinstance(result, LucidaError):
                failed.append((image.name, str(result)))
            else:
                seen.append(result)
        progress("looking at the pictures", start + len(part), len(images))
    return seen, failed


def log_odds(explainer: Explainer, pixels: Sequence[np.ndarray]) -> np.ndarray:
    """Return the log odds (N, classes) of pictures as the model sees them."""
    rows = []
    for start in range(0, len(pixels), _BATCH):
        x = torch.stack(
            [
                explainer.model.geometry.normalise(PIL.Image.fromarray(item))
                for item in pixels[start : start + _BATCH]
            ]
        )
        rows += [_odds(explainer, logits) for logits in predict_logits(explainer.backend, x)]
    return np.array(rows).reshape(-1, len(explainer.model.classes))


def _odds(explainer: Explainer, logits: torch.Tensor) -> np.ndarray:
    scores = np.zeros(len(explainer.model.classes))
    for item in explainer.rank(logits):
        scores[item.index] = item.score
    bounded = np.clip(scores, 1e-6, 1 - 1e-6)
    odds: np.ndarray = np.log(bounded / (1 - bounded))
    return odds


def _explain(explainer: Explainer, images: Sequence[SearchImage]) -> Iterator[SeenImage | LucidaError]:
    """Yield each picture with its evidence, or why there is none."""
    read: dict[int, tuple[Image, bytes] | LucidaError] = {}
    for place, image in enumerate(images):
        try:
            read[place] = image.read()
        except LucidaError as error:
            read[place] = error
    good = {place: item for place, item in read.items() if isinstance(item, tuple)}
    options = ExplainOptions(method=explainer.default_method, quick=True)
    prepared = [explainer.prepare(image) for image, _ in good.values()]
    results = dict(zip(good, explainer.explain_batch(prepared, options) if prepared else (), strict=True))
    for place, image in enumerate(images):
        content = read[place]
        if isinstance(content, LucidaError):
            yield content
            continue
        result = results[place]
        if isinstance(result, LucidaError):
            yield result
        else:
            yield _seen(explainer, image, result, list(good).index(place), content[1])


def _seen(
    explainer: Explainer, image: SearchImage, explanation: Explanation, place: int, data: bytes
) -> SeenImage:
    geometry = explainer.model.geometry
    pixels = np.asarray(geometry.see(explanation.image)[0])
    decoded = explanation.image
    objects = image.region((decoded.width, decoded.height))
    return SeenImage(
        name=image.name,
        pixels=pixels,
        truth=image.truth,
        predicted=explanation.predictions[0].index,
        log_odds=_odds(explainer, explanation.forward.logits[place]),
        parts=tuple(find_parts(explanation, place, pixels)),
        objects=None if objects is None else mask_in_input(explanation.frame, objects, pixels.shape[:2]),
        frame=explanation.frame,
        facts=read_facts(decoded, data, image.name),
        sha256=decoded.sha256,
        read=image.read,
    )


def find_parts(explanation: Explanation, place: int, pixels: np.ndarray) -> list[EvidencePart]:
    """Return the connected parts that a picture's map marks, those with most evidence first, at most 3."""
    from scipy import ndimage

    attribution = explanation.attributions[0]
    if attribution.status != "ok":
        return []
    hot = _enlarge(np.clip(attribution.values, 0, None), (_MAP_SIDE, _MAP_SIDE))
    edge = _HOT
    while (hot >= edge * hot.max()).mean() > _LARGEST_PART and edge < 0.9:
        edge += 0.1
    numbered, count = ndimage.label(hot >= edge * hot.max())
    parts = []
    for number in range(1, count + 1):
        cells = numbered == number
        if cells.mean() < _SMALLEST_PART:
            continue
        weights = np.where(cells, hot, 0.0)
        y, x = ndimage.center_of_mass(weights)
        mask = _enlarge_mask(cells, pixels.shape[:2])
        parts.append(
            EvidencePart(
                mask,
                _descriptor(explanation, place, weights),
                pixels[mask].mean(axis=0) / 255,
                ((x + 0.5) / _MAP_SIDE, (y + 0.5) / _MAP_SIDE),
                float(weights.sum() / hot.sum()),
            )
        )
    return sorted(parts, key=lambda part: -part.evidence)[:_MOST_PARTS]


def mask_in_input(frame: Frame, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask of the upright image (height, width) as the model's input (H, W) sees it."""
    x0, y0, x1, y1 = frame.seen_box
    rows = y0 + (np.arange(size[0]) + 0.5) / size[0] * (y1 - y0)
    cols = x0 + (np.arange(size[1]) + 0.5) / size[1] * (x1 - x0)
    inside = np.outer((rows >= 0) & (rows < frame.height), (cols >= 0) & (cols < frame.width))
    at = np.ix_(np.clip(rows.astype(int), 0, frame.height - 1), np.clip(cols.astype(int), 0, frame.width - 1))
    placed: np.ndarray = mask[at] & inside
    return placed


def _descriptor(explanation: Explanation, place: int, weights: np.ndarray) -> np.ndarray:
    """Return the channels (C,) of the block that was read, averaged under the evidence, of unit length."""
    if not explanation.forward.has_map:
        return np.zeros(1, np.float32)
    values = to_numpy(explanation.forward.map[place])
    cells = _shrink(weights, values.shape[1:])
    summed = (values * cells).sum(axis=(1, 2))
    unit: np.ndarray = (summed / max(float(np.linalg.norm(summed)), 1e-12)).astype(np.float32)
    return unit


def _enlarge(grid: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(
        PIL.Image.fromarray(grid.astype(np.float32)).resize((size[1], size[0]), PIL.Image.Resampling.BILINEAR)
    )


def _shrink(grid: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return np.asarray(
        PIL.Image.fromarray(grid.astype(np.float32)).resize((size[1], size[0]), PIL.Image.Resampling.BOX)
    )


def _enlarge_mask(cells: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    enlarged = PIL.Image.fromarray(cells.astype(np.uint8) * 255).resize(
        (size[1], size[0]), PIL.Image.Resampling.NEAREST
    )
    inside: np.ndarray = np.asarray(enlarged) > 127
    return inside
