"""What happens to a class's score when what is suspected is taken out of its pictures, and put into others.

The effect of taking it out is held against as large a change elsewhere in the same picture, and against the
same change in pictures of other classes; that of putting it into pictures of other classes against putting in
what yet other pictures have there. Effects are in log odds of the class (nats).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.explainer import Explainer
from pipelines.shortcuts.edits import Editor
from pipelines.shortcuts.evidence import SeenImage, log_odds
from pipelines.shortcuts.statistics import paired_p_value, unpaired_p_value

_MOST_TESTED = 40
"""Pictures of a suspicion."""
_MOVES = 3


@dataclass(frozen=True)
class Intervention:
    """The effects of the edits, picture by picture."""

    tested: tuple[str, ...]
    """Names of the N pictures that have it."""
    removed: np.ndarray = field(repr=False)
    """(N,) by how much the class's log odds fall without it."""
    elsewhere: np.ndarray = field(repr=False)
    """(N,) the same for as large a change elsewhere."""
    others: np.ndarray = field(repr=False)
    """(N,) by how much the class falls in pictures of other classes, changed at the same place."""
    added: np.ndarray = field(repr=False)
    """(N,) by how much the class rises in pictures of other classes with it."""
    added_control: np.ndarray = field(repr=False)
    """(N,) the same with what yet other pictures have there."""
    flipped: float
    """Share of the answers that change without it, over pictures and ways."""
    flipped_elsewhere: float
    taken_over: float
    """Share of the other classes' pictures that are answered with this class once they have it."""
    score_with: float
    score_without: float
    """Mean scores of the class in its pictures."""

    @property
    def p_removed(self) -> float:
        """One-sided, that the class falls without it: by more than by both of its controls."""
        return max(paired_p_value(self.removed - self.elsewhere), unpaired_p_value(self.removed, self.others))

    @property
    def p_added(self) -> float:
        """One-sided, that the class rises with it: by more than by what others have there."""
        return paired_p_value(self.added - self.added_control)


def intervene(
    explainer: Explainer,
    editor: Editor,
    carriers: Sequence[SeenImage],
    others: Sequence[SeenImage],
    label: int,
    *,
    seed: int = 0,
) -> Intervention:
    """Take what is suspected of a class out of the pictures that have it, at most 40, and put it into
    ``others``, which are of other classes and have it not.
    """
    rng = np.random.default_rng([seed, label])
    chosen = np.sort(rng.choice(len(carriers), min(_MOST_TESTED, len(carriers)), replace=False))
    tested = [carriers[n] for n in chosen]
    beside, donors = ([others[n] for n in _draw(len(others), len(tested), rng)] for _ in range(2))
    removed, flipped, after = _falls(
        explainer,
        tested,
        [editor.remove(image, donor) for image, donor in zip(tested, donors, strict=True)],
        label,
    )
    moved = [
        _falls(
            explainer,
            tested,
            [editor.change_elsewhere(image, donor, rng) for image, donor in zip(tested, donors, strict=True)],
            label,
        )
        for _ in range(_MOVES)
    ]
    fallen, _, _ = _falls(
        explainer, beside,
        [editor.change_other(other, image, donor)
         for other, image, donor in zip(beside, tested, donors, strict=True)],
        label,
    )  # fmt: skip
    before = np.stack([image.log_odds for image in beside])[:, label]
    added, control = (
        log_odds(explainer, [editor.add(target, source, image)
                             for target, source, image in zip(beside, sources, tested, strict=True)])
        for sources in (tested, donors)
    )  # fmt: skip
    return Intervention(
        tested=tuple(image.name for image in tested),
        removed=removed,
        elsewhere=np.mean([falls for falls, _, _ in moved], axis=0),
        others=fallen,
        added=added[:, label] - before,
        added_control=control[:, label] - before,
        flipped=flipped,
        flipped_elsewhere=float(np.mean([share for _, share, _ in moved])),
        taken_over=float((added.argmax(axis=1) == label).mean()),
        score_with=_mean_score(np.stack([image.log_odds for image in tested])[:, label]),
        score_without=_mean_score(after),
    )


def _falls(
    explainer: Explainer,
    images: Sequence[SeenImage],
    edited: Sequence[Sequence[np.ndarray]],
    label: int,
) -> tuple[np.ndarray, float, np.ndarray]:
    """Return by how much each picture falls in a class, as the mean over the ways; the share of answers that
    change; and the log odds afterwards.
    """
    ways = len(edited[0])
    before = np.stack([image.log_odds for image in images])
    after = log_odds(explainer, [way for variants in edited for way in variants]).reshape(
        len(images), ways, -1
    )
    later = after[:, :, label]
    flipped = after.argmax(axis=2) != before.argmax(axis=1)[:, None]
    return before[:, label] - later.mean(axis=1), float(flipped.mean()), later.ravel()


def _draw(count: int, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return places of so many pictures, each as often as the others."""
    return np.concatenate([rng.permutation(count) for _ in range(-(-size // count))])[:size]


def _mean_score(odds: np.ndarray) -> float:
    return float((1 / (1 + np.exp(-odds))).mean())
