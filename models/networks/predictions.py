"""Named scores, highest first."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass

import torch
from torch import Tensor

from models.errors import ExplanationError, UnknownChoice
from models.networks.scoring import ACCEPTED_FROM, Scoring


@dataclass(frozen=True, slots=True)
class Prediction:
    """A class with its score."""

    label: str
    index: int
    score: float
    """Calibrated probability, 0 to 1: softmax over the classes, or the label's own where several can hold."""
    accepted: bool
    """Whether the model answers with this class: the highest score, or every label from 0.5 upwards."""


def rank_classes(logits: Tensor, classes: list[str], scoring: Scoring) -> list[Prediction]:
    """Return all classes of one image's logits (classes,), highest first; equal scores keep the order of
    the classes.

    Raises ExplanationError when a logit is not finite: such a score would be a lie in any order.
    """
    if logits.shape != (len(classes),):
        raise ValueError(f"Expected logits of shape ({len(classes)},), not {tuple(logits.shape)}.")
    if not bool(torch.isfinite(logits).all()):
        raise ExplanationError("The model's logits for this picture are not finite numbers.")
    scores = scoring.scores(logits)
    order = torch.argsort(scores, descending=True, stable=True).tolist()
    several = scoring.task == "multilabel"
    return [
        Prediction(
            label=classes[i],
            index=i,
            score=float(scores[i]),
            accepted=float(scores[i]) >= ACCEPTED_FROM if several else place == 0,
        )
        for place, i in enumerate(order)
    ]


def class_index(target: str, classes: list[str]) -> int:
    """Return index of a class by name, or by number where no class has that name; raises UnknownChoice.

    Names are compared in Unicode's composed form (NFC), as keyboards and file systems differ in theirs.
    """
    if target in classes:
        return classes.index(target)
    composed = [unicodedata.normalize("NFC", name) for name in classes]
    if (name := unicodedata.normalize("NFC", target)) in composed:
        return composed.index(name)
    if target.isascii() and target.isdigit() and len(target) < 10 and int(target) < len(classes):
        return int(target)
    raise UnknownChoice("class", target, classes)
