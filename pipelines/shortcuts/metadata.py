"""Whether the class follows from facts that are not the content: size, format, camera, border, corners.

A small decision tree is fitted on each fact alone and asked about pictures that it was not fitted on; what
its answers tell of the class is their mutual information, in bits, against that with the classes shuffled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.shortcuts.evidence import SeenImage
from pipelines.shortcuts.statistics import holm

_FOLDS, _SHUFFLES = 5, 999
_FEWEST_OF_A_CLASS = 10
_LEAST_SHARE = 0.1
"""Of the entropy of the classes, below which a leak is not worth telling."""


@dataclass(frozen=True, slots=True)
class Leak:
    """A fact and what it tells of the class on pictures that were held out."""

    fact: str
    bits: float
    share: float
    """Of the classes' entropy, 0 to 1."""
    accuracy: float
    by_chance: float
    """Share of right answers by the fact, and by always saying the most frequent class."""
    p_value: float
    """Corrected for the number of facts."""
    tells_class: bool


def find_leaks(images: Sequence[SeenImage], *, level: float = 0.05, seed: int = 0) -> list[Leak]:
    """Return all facts, those that tell most first; nothing for classes of fewer than 10 pictures."""
    usable = [image for image in images if image.truth is not None]
    labels = np.array([image.truth for image in usable])
    counts = np.bincount(labels) if len(labels) else np.zeros(1, int)
    enough = np.flatnonzero(counts >= _FEWEST_OF_A_CLASS)
    if len(enough) < 2:
        return []
    keep = np.isin(labels, enough)
    labels, usable = labels[keep], [image for image, kept_one in zip(usable, keep, strict=True) if kept_one]
    measured = []
    for fact, values in _columns(usable).items():
        answers = _held_out_answers(values, labels, seed)
        bits = mutual_information(answers, labels)
        rng = np.random.default_rng(seed)
        shuffled = [mutual_information(answers, rng.permutation(labels)) for _ in range(_SHUFFLES)]
        p_value = (1 + sum(value >= bits for value in shuffled)) / (1 + _SHUFFLES)
        measured.append((fact, max(0.0, bits - float(np.mean(shuffled))), answers, p_value))
    corrected = holm([p_value for *_, p_value in measured])
    entropy = mutual_information(labels, labels)
    leaks = [
        Leak(
            fact,
            bits,
            bits / entropy,
            float((answers == labels).mean()),
            float(counts.max() / len(labels)),
            p_value,
            p_value < level and bits / entropy >= _LEAST_SHARE,
        )
        for (fact, bits, answers, _), p_value in zip(measured, corrected, strict=True)
    ]
    return sorted(leaks, key=lambda leak: -leak.bits)


def mutual_information(one: np.ndarray, other: np.ndarray) -> float:
    """Return I(X; Y) of two columns of whole numbers, in bits (Cover and Thomas 2006, 2.28)."""
    joint = np.zeros((one.max() + 1, other.max() + 1))
    np.add.at(joint, (one, other), 1 / len(one))
    expected = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log2(joint[seen] / expected[seen])).sum())


def _columns(images: Sequence[SeenImage]) -> dict[str, np.ndarray]:
    """Return the facts that differ between the pictures, by name, as numbers (N, D)."""
    columns = {
        name: np.array([image.facts.numbers[name] for image in images]) for name in images[0].facts.numbers
    }
    for name in images[0].facts.words:
        words = [image.facts.words[name] for image in images]
        choices = sorted(set(words))
        columns[name] = np.array([[word == choice for choice in choices] for word in words], dtype=float)
    return {name: values for name, values in columns.items() if np.ptp(values, axis=0).any()}


def _held_out_answers(values: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.tree import DecisionTreeClassifier

    tree = DecisionTreeClassifier(max_depth=3, min_samples_leaf=5, random_state=seed)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    answers: np.ndarray = cross_val_predict(tree, values, labels, cv=folds)
    return answers
