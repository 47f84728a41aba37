"""A drawn specimen again without one of its parts, all else as it was: what a score really loses by each.

The protocol is FunnyBirds' (Hesse et al. 2023) with the project's own specimens: parts are taken away by
drawing the image anew, so nothing has to be covered, and no cover decides what comes out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import PIL.Image

from pipelines.data.synthetic import SPECIES, SpecimenPlan, begin_canvas, shrink_mask

LEFT_MARK, RIGHT_MARK, WINGS, GROUND, LABEL = "left mark", "right mark", "wings", "ground", "label"


@dataclass(frozen=True, slots=True)
class Part:
    """A part of a specimen."""

    mask: np.ndarray
    """Where it is, boolean (height, width)."""
    without: PIL.Image.Image
    """The image without it."""


@dataclass(frozen=True, slots=True)
class SpecimenParts:
    """A specimen with what it is made of."""

    species: str
    image: PIL.Image.Image
    parts: dict[str, Part]
    other: str
    """The species whose mark the left side of ``two_marks`` has; the right side has its own."""
    two_marks: PIL.Image.Image
    two_masks: tuple[np.ndarray, np.ndarray]
    """Where its own mark is there, and where the other's is."""


@dataclass(frozen=True, slots=True)
class _Drawing:
    """A choice of what is drawn of a specimen."""

    left: str | None = None
    right: str | None = None
    wings: bool = True
    ground: bool = True
    label: bool = False


def draw_parts(plan: SpecimenPlan, split: str, species: str, number: int, *, label: bool) -> SpecimenParts:
    """Draw one specimen, with a collector's label or without, and again without each of its parts."""
    draw = partial(_draw, plan, split, species, number)
    whole = _Drawing(label=label)
    image, body, marks, tag = draw(whole)
    left, right = marks
    masks = {LEFT_MARK: left, RIGHT_MARK: right, WINGS: body & ~left & ~right & ~tag, GROUND: ~body & ~tag}
    drawings = {
        LEFT_MARK: replace(whole, left=""),
        RIGHT_MARK: replace(whole, right=""),
        WINGS: replace(whole, wings=False),
        GROUND: replace(whole, ground=False),
    }
    if label:
        masks[LABEL], drawings[LABEL] = tag, replace(whole, label=False)
    names = list(SPECIES)
    other = names[(names.index(species) + 1 + number % (len(names) - 1)) % len(names)]
    two, _, (their_mark, own_mark), _ = draw(replace(whole, left=other))
    parts = {name: Part(mask, draw(drawings[name])[0]) for name, mask in masks.items() if mask.any()}
    return SpecimenParts(species, image, parts, other, two, (own_mark, their_mark))


def _draw(
    plan: SpecimenPlan, split: str, species: str, number: int, what: _Drawing
) -> tuple[PIL.Image.Image, np.ndarray, tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Return an image with the masks of its body, of the marks of both sides, and of its label."""
    canvas, size = begin_canvas(plan, split, species, number)
    if not what.ground:
        canvas.pixels = np.broadcast_to(canvas.pixels.mean((0, 1)), canvas.pixels.shape).copy()
    body, mark = canvas.butterfly(species, left=what.left, right=what.right, wings_laid=what.wings)
    canvas.light()
    # Its number is drawn by lot, and the grain after it must stay as it is.
    lot = canvas.rng.bit_generator.state
    tag = canvas.label(species) if what.label else np.zeros_like(body)
    canvas.rng.bit_generator.state = lot
    masks = (body & ~tag, mark & (canvas.side < 0) & ~tag, mark & (canvas.side > 0) & ~tag, tag)
    whole, left, right, label = (np.asarray(shrink_mask(mask, size)) > 0 for mask in masks)
    return canvas.finish(size), whole, (left, right), label
