"""What is suspected before it is tested: parts that repeat, parts beside the objects, and the light of the
border.

A part that speaks for a class is nothing odd: objects do. It is suspected where pixels repeat at one place of
several pictures (a stamp, a label, a frame), where it lies beside the known objects, or where a class's
pictures are lit as no other's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from pipelines.shortcuts.edits import Editor, LightEditor, PartEditor, border_colour
from pipelines.shortcuts.evidence import SeenImage
from pipelines.shortcuts.proposals import FEWEST_MEMBERS, Proposal
from pipelines.shortcuts.repetition import Repeated, StructureIndex

Kind = Literal["repeats", "beside the object", "light"]
FEWEST_CARRIERS = 5
_MAY_REPEAT, _REPEATS, _ABOVE_CHANCE = 0.2, 0.5, 0.35
"""Correlations: of a group before its mark is cut out, of the pictures that have it, and above others'."""
_INSIDE_OBJECT, _ON_OBJECT = 0.15, 0.5
_SAME_PLACE = 0.3
_TIMES_AS_OFTEN = 6.0
_UNUSUAL_LIGHT, _MOST_BY_CHANCE = 0.975, 0.01
_LIGHTS = 4


@dataclass(frozen=True)
class Suspicion:
    """Something that pictures of a class have, and may be recognised by."""

    kind: Kind
    label: int
    carriers: tuple[SeenImage, ...] = field(repr=False)
    """Pictures of the class that have it."""
    elsewhere: frozenset[str] = field(repr=False)
    """Names of the pictures of other classes that have it."""
    editor: Editor = field(repr=False)
    masks: dict[str, np.ndarray] = field(repr=False)
    """By the name of each carrier: where, boolean (H, W)."""

    @property
    def is_foreign(self) -> bool:
        """Whether it cannot be a part of the object: pixels that repeat, and light."""
        return self.kind != "beside the object"


def suspect(images: Sequence[SeenImage], proposals: Sequence[Proposal]) -> list[Suspicion]:
    """Return what is odd about the proposed parts, and about the light; of two of one class at one place the
    one that more pictures have.
    """
    index = StructureIndex(images)
    labels = sorted({image.label for image in images})
    odd = [_odd_part(index, proposal) for proposal in proposals]
    odd += [
        _repeated(index, names, mask, label)
        for label in labels
        for names, mask in index.shared_windows(label)
    ]
    candidates = [item for item in odd if item is not None]
    candidates.sort(key=lambda item: -len(item.carriers))
    distinct: list[Suspicion] = []
    for item in candidates:
        if not any(_same(item, other) for other in distinct):
            distinct.append(item)
    return distinct + [item for item in (_odd_light(images, label) for label in labels) if item is not None]


def _odd_part(index: StructureIndex, proposal: Proposal) -> Suspicion | None:
    repeated = _repeated(index, [image.name for image in proposal.images], proposal.region, proposal.label)
    if repeated is not None:
        return repeated
    masks = {image.name: part.mask for image, part in zip(proposal.images, proposal.parts, strict=True)}
    inside = _inside_objects(proposal.images, masks)
    if inside is not None and inside <= _INSIDE_OBJECT:
        return Suspicion(
            "beside the object", proposal.label, proposal.images, frozenset(), PartEditor(masks), masks
        )
    return None


def _inside_objects(images: Sequence[SeenImage], masks: dict[str, np.ndarray]) -> float | None:
    """Return the mean share of the masks that lies within the objects; None where too few objects are
    known.
    """
    shares = [
        float((image.objects & masks[image.name]).sum() / masks[image.name].sum())
        for image in images
        if image.objects is not None and image.objects.any() and masks[image.name].any()
    ]
    return float(np.mean(shares)) if len(shares) >= min(FEWEST_MEMBERS, len(images)) else None


def _repeated(index: StructureIndex, names: Sequence[str], mask: np.ndarray, label: int) -> Suspicion | None:
    """Return what these pictures repeat under a mask, with all pictures that have it."""
    if index.correlation(names, mask) < _MAY_REPEAT:
        return None
    repeated = index.find(names, mask, label)
    if repeated is None or repeated.correlation < max(_REPEATS, repeated.by_chance + _ABOVE_CHANCE):
        return None
    own = tuple(image for image in index.images if image.name in repeated.masks and image.label == label)
    if len(own) < FEWEST_CARRIERS or not _marks_class(index, own, repeated, label):
        return None
    masks = {image.name: repeated.masks[image.name] for image in own}
    inside = _inside_objects(own, masks)
    if inside is not None and inside > _ON_OBJECT:
        # What lies on the objects is a part of them.
        return None
    return Suspicion("repeats", label, own, frozenset(repeated.masks) - set(masks), PartEditor(masks), masks)


def _marks_class(index: StructureIndex, own: Sequence[SeenImage], repeated: Repeated, label: int) -> bool:
    """Return whether a class has a part far more often than the other classes together."""
    own_count = sum(image.label == label for image in index.images)
    others = len(index.images) - own_count
    elsewhere = len(repeated.masks) - len(own)
    return others > 0 and len(own) / own_count >= _TIMES_AS_OFTEN * elsewhere / others


def _odd_light(images: Sequence[SeenImage], label: int) -> Suspicion | None:
    """Return the pictures of a class whose border is of a colour that others' borders hardly have."""
    from scipy import stats

    own = [image for image in images if image.label == label]
    others = [image for image in images if image.label != label]
    if len(own) < FEWEST_MEMBERS or len(others) < 2 * FEWEST_MEMBERS:
        return None
    chroma = {image.name: _chroma(image) for image in images}
    usual = np.stack([chroma[image.name] for image in others])
    centre, inverse = np.median(usual, axis=0), np.linalg.pinv(np.cov(usual.T) + 1e-6 * np.eye(2))

    def distance(image: SeenImage) -> float:
        away = chroma[image.name] - centre
        return float(away @ inverse @ away)

    edge = float(np.quantile([distance(image) for image in others], _UNUSUAL_LIGHT))
    carriers = tuple(image for image in own if distance(image) > edge)
    by_chance = stats.binomtest(
        len(carriers), len(own), 2 * (1 - _UNUSUAL_LIGHT), alternative="greater"
    ).pvalue
    if len(carriers) < FEWEST_MEMBERS or by_chance > _MOST_BY_CHANCE:
        return None
    elsewhere = frozenset(image.name for image in others if distance(image) > edge)
    masks = {image.name: _background(image) for image in carriers}
    plain = [image for image in others if image.name not in elsewhere]
    usual = np.stack([border_colour(image) for image in plain[:: max(1, len(plain) // _LIGHTS)][:_LIGHTS]])
    return Suspicion("light", label, carriers, elsewhere, LightEditor(usual), masks)


def _chroma(image: SeenImage) -> np.ndarray:
    """Return the colour (2,) of a border without its brightness: log red and log blue against green."""
    red, green, blue = np.log(border_colour(image) + 1)
    return np.array([red - green, blue - green])


def _background(image: SeenImage) -> np.ndarray:
    if image.objects is not None:
        return ~image.objects
    return np.ones(image.pixels.shape[:2], dtype=bool)


def _same(one: Suspicion, other: Suspicion) -> bool:
    if one.label != other.label:
        return False
    first, second = (np.mean(list(item.masks.values()), axis=0) > 0.3 for item in (one, other))
    union = float((first | second).sum())
    return union > 0 and float((first & second).sum()) / union > _SAME_PLACE
