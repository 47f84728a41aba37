"""What is explained: the score of a class, or why it and not another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from models.errors import ExplanationError, UnknownChoice
from models.networks.predictions import Prediction, class_index


@dataclass(frozen=True, slots=True)
class Target:
    """A class to explain, or the contrast of two: the difference of their scores."""

    index: int
    label: str
    against_index: int | None = None
    against: str | None = None
    """The class that it is held against."""

    @property
    def name(self) -> str:
        """For people: "bee", or "bee, not ant"."""
        return self.label if self.against is None else f"{self.label}, not {self.against}"

    def of(self, values: Tensor) -> Tensor:
        """Return the class's column of logits or scores (…, classes), less that of the class held
        against it.
        """
        own = values[..., self.index]
        return own if self.against_index is None else own - values[..., self.against_index]


def make_target(classes: Sequence[str], index: int, against: int | None = None) -> Target:
    """Return a target by class indices; raises UnknownChoice for one outside the classes, and
    ExplanationError for a class against itself.
    """
    for class_number in (index, against):
        if class_number is not None and not 0 <= class_number < len(classes):
            raise UnknownChoice("class index", class_number, range(len(classes)))
    if index == against:
        raise ExplanationError(f"A contrast needs two classes, not {classes[index]!r} twice.")
    return Target(index, classes[index], against, None if against is None else classes[against])


def choose_targets(
    classes: list[str],
    ranking: Sequence[Prediction],
    *,
    name: str | None = None,
    against: str | None = None,
    top_k: int = 1,
) -> list[Target]:
    """Return the targets of one image: the class ``name``, or the ``top_k`` highest scores; each
    ``against`` another class.

    With ``against`` alone the predicted class is explained against it; where that is the predicted class
    itself, the next one is. Raises UnknownChoice and ExplanationError.
    """
    other = None if against is None else class_index(against, classes)
    if name is not None:
        return [make_target(classes, class_index(name, classes), other)]
    indices = [item.index for item in ranking if item.index != other][:top_k]
    return [make_target(classes, index, other) for index in indices]
