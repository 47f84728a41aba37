"""The page of a search for shortcuts: a card a finding, with pictures that have it, lose it and get it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import PIL.Image

from models.explainer import Explainer
from models.images.encode import to_data_uri
from pipelines.reports.html import render_template
from pipelines.shortcuts.evidence import SeenImage, log_odds
from pipelines.shortcuts.finder import ShortcutSearch, TestedSuspicion

SHORTCUTS_HTML, SHORTCUTS_JSON = "shortcuts/index.html", "shortcuts/shortcuts.json"
_SHOWN, _NAMED = 4, 40
_OUTLINE = (255, 0, 170)
_KINDS = {
    "repeats": "the same pixels at the same place",
    "beside the object": "a part beside the objects",
    "light": "the colour of the light",
}


@dataclass(frozen=True, slots=True)
class ShownEdit:
    """A picture with and without what was found, as data: URIs, and the class's scores."""

    name: str
    before: str
    after: str
    score_before: float
    score_after: float
    answer_before: str
    answer_after: str


@dataclass(frozen=True, slots=True)
class ShownFinding:
    """A finding as the page shows it."""

    label: str
    what: str
    place: str
    sentences: tuple[str, ...]
    removed: tuple[ShownEdit, ...]
    added: tuple[ShownEdit, ...]
    folders: tuple[tuple[str, int], ...]
    """Where the pictures that have it lie, with their number."""
    names: tuple[str, ...]


def render_search(search: ShortcutSearch, explainer: Explainer, *, title: str, about: str) -> str:
    """Return the page of a search."""
    classes = explainer.model.classes
    return render_template(
        "shortcuts.html.j2",
        title=title,
        about=about,
        pictures=len(search.images),
        failed=search.failed,
        proposals=search.proposals,
        findings=[_show(search, item, explainer) for item in search.findings],
        rejected=[
            {
                "label": classes[item.suspicion.label], "what": _KINDS[item.suspicion.kind],
                "place": place_of(item), "count": len(item.suspicion.carriers), "removed": str(item.removed),
                "added": str(item.added), "p_value": item.p_value,
            }
            for item in search.tested
            if not item.survives
        ],
        leaks=search.leaks,
    )  # fmt: skip


def search_to_json(search: ShortcutSearch, classes: Sequence[str]) -> dict[str, Any]:
    """Return all figures of a search as plain values."""
    return {
        "pictures": len(search.images),
        "could_not_be_used": [{"name": name, "reason": reason} for name, reason in search.failed],
        "parts_looked_at": search.proposals,
        "tested": [_to_json(search, item, classes) for item in search.tested],
        "leaks": [asdict(leak) for leak in search.leaks],
    }


def to_text(search: ShortcutSearch, classes: Sequence[str]) -> list[str]:
    """Return the findings in sentences, one a line."""
    lines = [
        f"{classes[item.suspicion.label]}: {_KINDS[item.suspicion.kind]}, {place_of(item)}. "
        + " ".join(_sentences(search, item, classes)[:2])
        for item in search.findings
    ]
    return lines + [
        f"The {leak.fact} tells the class: {leak.accuracy:.0%} right by it alone, {leak.by_chance:.0%} by "
        f"the most frequent class (p {leak.p_value:.2g})."
        for leak in search.leaks
        if leak.tells_class
    ]


def place_of(item: TestedSuspicion) -> str:
    """Return in words where in the picture something lies."""
    if item.suspicion.kind == "light":
        return "around the objects"
    share = np.mean(list(item.suspicion.masks.values()), axis=0)
    rows, cols = (
        float((share.sum(axis=axis) * (np.arange(share.shape[1 - axis]) + 0.5)).sum() / share.sum())
        / share.shape[1 - axis]
        for axis in (1, 0)
    )
    down = "upper" if rows < 1 / 3 else "lower" if rows > 2 / 3 else "middle"
    across = "left" if cols < 1 / 3 else "right" if cols > 2 / 3 else "centre"
    return "in the centre" if (down, across) == ("middle", "centre") else f"{down} {across}"


def _to_json(search: ShortcutSearch, item: TestedSuspicion, classes: Sequence[str]) -> dict[str, Any]:
    own, others = search.prevalence(item)
    result = item.intervention
    return {
        "class": classes[item.suspicion.label],
        "kind": item.suspicion.kind,
        "place": place_of(item),
        "found": item.survives,
        "share_of_class": own,
        "share_of_others": others,
        "removed": asdict(item.removed),
        "added": asdict(item.added),
        "p_value": item.p_value,
        "flipped": result.flipped,
        "flipped_elsewhere": result.flipped_elsewhere,
        "taken_over": result.taken_over,
        "score_with": result.score_with,
        "score_without": result.score_without,
        "pictures": [image.name for image in item.suspicion.carriers],
        "pictures_of_other_classes": sorted(item.suspicion.elsewhere),
    }


def _sentences(search: ShortcutSearch, item: TestedSuspicion, classes: Sequence[str]) -> tuple[str, ...]:
    own, others = search.prevalence(item)
    label, result = classes[item.suspicion.label], item.intervention
    corrected = f", corrected for {len(search.tested)} tests" if len(search.tested) > 1 else ""
    certainty = f"p is {item.p_value:.2g}{corrected}."
    return (
        f"{own:.0%} of the pictures of {label} have it, {others:.0%} of the others.",
        f"Without it {label} falls by {item.removed.value:.1f} nats of log odds more than by as large a "
        f"change elsewhere (95 %: {item.removed.low:.1f} to {item.removed.high:.1f}); its mean score goes "
        f"from {result.score_with:.2f} to {result.score_without:.2f}, and {result.flipped:.0%} of the "
        f"answers change ({result.flipped_elsewhere:.0%} elsewhere).",
        f"Put into pictures of other classes, {label} rises by {item.added.value:.1f} nats more than by what "
        f"other pictures have there ({item.added.low:.1f} to {item.added.high:.1f}); {result.taken_over:.0%} "
        f"of them are then answered {label}.",
        certainty,
    )


def _show(search: ShortcutSearch, item: TestedSuspicion, explainer: Explainer) -> ShownFinding:
    suspicion = item.suspicion
    classes = explainer.model.classes
    names = [image.name for image in suspicion.carriers]
    donors = [
        image
        for image in search.images
        if suspicion.label not in (image.label, image.predicted) and image.name not in suspicion.elsewhere
    ]
    step = max(1, len(donors) // _SHOWN)
    targets = donors[::step][:_SHOWN]
    fall = dict(zip(item.intervention.tested, item.intervention.removed, strict=True))
    carriers = sorted(suspicion.carriers, key=lambda image: -fall.get(image.name, -np.inf))[:_SHOWN]
    removed = [suspicion.editor.remove(image, targets[n % len(targets)]) for n, image in enumerate(carriers)]
    # The one in the middle: of a part, filled with the colour around it, the plainest to look at.
    without = [ways[len(ways) // 2] for ways in removed]
    with_it = [
        suspicion.editor.add(target, carriers[n % len(carriers)], carriers[n % len(carriers)])
        for n, target in enumerate(targets)
    ]
    folders = Counter(str(PurePosixPath(name).parent) for name in names)
    return ShownFinding(
        classes[suspicion.label],
        _KINDS[suspicion.kind],
        place_of(item),
        _sentences(search, item, classes),
        _edits(explainer, carriers, without, suspicion.label, suspicion.masks),
        _edits(explainer, targets, with_it, suspicion.label, {}),
        tuple(folders.most_common(6)),
        tuple(names[:_NAMED]),
    )


def _edits(
    explainer: Explainer,
    images: Sequence[SeenImage],
    edited: Sequence[np.ndarray],
    label: int,
    masks: dict[str, np.ndarray],
) -> tuple[ShownEdit, ...]:
    classes = explainer.model.classes
    after = log_odds(explainer, edited)
    return tuple(
        ShownEdit(
            name=image.name,
            before=to_data_uri(PIL.Image.fromarray(_outlined(image.pixels, masks.get(image.name)))),
            after=to_data_uri(PIL.Image.fromarray(pixels)),
            score_before=_score(image.log_odds[label]),
            score_after=_score(odds[label]),
            answer_before=classes[image.predicted],
            answer_after=classes[int(odds.argmax())],
        )
        for image, pixels, odds in zip(images, edited, after, strict=True)
    )


def _outlined(pixels: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Return a picture with the edge of a mask drawn on it."""
    from scipy import ndimage

    if mask is None or mask.all():
        return pixels
    edge = ndimage.binary_dilation(mask, iterations=2) & ~mask
    outlined = pixels.copy()
    outlined[edge] = _OUTLINE
    return outlined


def _score(odds: float) -> float:
    return float(1 / (1 + np.exp(-odds)))


def log_json(search: ShortcutSearch, classes: Sequence[str]) -> str:
    """Return the figures as text of a JSON file."""
    return json.dumps(search_to_json(search, classes), indent=2)
