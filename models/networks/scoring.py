"""How logits become scores: what kind of question the model answers, and how its certainty is calibrated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from models.errors import ConfigError, UnknownChoice

Task = Literal["multiclass", "binary", "multilabel"]
"""Exactly one class of many; one of two, from a single logit; or any number of labels at once."""

TASKS: tuple[Task, ...] = get_args(Task)
ACCEPTED_FROM = 0.5
"""A label of a multilabel model is accepted from this score."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """Task and temperature of one model; part of its bundle, so that every place scores alike."""

    task: Task = "multiclass"
    temperature: float = 1.0
    """Logits are divided by this before the activation (Guo et al. 2017); above 1 makes scores less sure.
    It never changes which class is highest.
    """

    def __post_init__(self) -> None:
        """Raise UnknownChoice for another task and ConfigError for a temperature that cannot divide."""
        if self.task not in TASKS:
            raise UnknownChoice("task", self.task, TASKS)
        if not (math.isfinite(self.temperature) and 0.01 <= self.temperature <= 100):
            raise ConfigError(f"temperature is {self.temperature!r}; it must be from 0.01 to 100.")

    def scores(self, logits: Tensor) -> Tensor:
        """Convert logits (…, classes) to probabilities in float64: softmax over the classes, or each label's
        own sigmoid.
        """
        calibrated = logits.double() / self.temperature
        return calibrated.sigmoid() if self.task == "multilabel" else torch.softmax(calibrated, dim=-1)

    def margin(self, logits: Tensor) -> Tensor:
        """Return how far each answer of logits (N, classes) is from being another one, (N,): the lead of the
        highest logit, or the least distance of a label's logit from 0.
        """
        if self.task == "multilabel":
            return logits.abs().amin(dim=1)
        first, second = logits.topk(2, dim=1).values.unbind(1)
        return first - second


def expand_binary(logit: Tensor) -> Tensor:
    """Convert one logit z (N, 1) to the logits (-z/2, z/2) of the negative and the positive class.

    Their softmax is the sigmoid of z and their cross-entropy is the binary cross-entropy of z, so all that
    works on two classes works on these; the evidence for one class is that against the other.
    """
    return torch.cat([-logit / 2, logit / 2], dim=1)
