"""What is explained: the score of a class, why it and not another, or what speaks against it."""

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
    negative: bool = False
    """Whether what speaks against the class is explained: the score with its sign changed, as in the
    counterfactual explanations of Selvaraju et al. 2017, section 3.3."""

    @property
    def name(self) -> str:
        """For people: "bee", "bee, not ant", or "against bee"."""
        name = self.label if self.against is None else f"{self.label}, not {self.against}"
        return f"against {name}" if self.negative else name

    def of(self, values: Tensor) -> Tensor:
        """Return the class's column of logits or scores (…, classes), less that of the class held
        against it; with its sign changed where what speaks against it is explained.
        """
        own = values[..., self.index]
        if self.against_index is not None:
            own = own - values[..., self.against_index]
        return -own if self.negative else own


def make_target(
    classes: Sequence[str], index: int, against: int | None = None, *, negative: bool = False
) -> Target:
    """Return a target by class indices; raises UnknownChoice for one outside the classes, and
    ExplanationError for a class against itself, or for the negative of a contrast, which shows both sides.
    """
    for class_number in (index, against):
        if class_number is not None and not 0 <= class_number < len(classes):
            raise UnknownChoice("class index", class_number, range(len(classes)))
    if index == against:
        raise ExplanationError(f"A contrast needs two classes, not {classes[index]!r} twice.")
    if negative and against is not None:
        raise ExplanationError("A contrast shows both sides; ask without negative, or without against.")
    return Target(index, classes[index], against, None if against is None else classes[against], negative)


def choose_targets(
    classes: list[str],
    ranking: Sequence[Prediction],
    *,
    name: str | None = None,
    against: str | None = None,
    top_k: int = 1,
    negative: bool = False,
) -> list[Target]:
    """Return the targets of one image: the class ``name``, or the ``top_k`` highest scores; each
    ``against`` another class, or what speaks against them where ``negative``.

    With ``against`` alone the predicted class is explained against it; where that is the predicted class
    itself, the next one is. Raises UnknownChoice and ExplanationError.
    """
    other = None if against is None else class_index(against, classes)
    if name is not None:
        return [make_target(classes, class_index(name, classes), other, negative=negative)]
    indices = [item.index for item in ranking if item.index != other][:top_k]
    return [make_target(classes, index, other, negative=negative) for index in indices]
