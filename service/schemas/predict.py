"""The answer of /predict."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, PrivateAttr

from service.schemas.base import About, Answer, Score

if TYPE_CHECKING:
    from models.reference import Observation


class NoveltyAnswer(Answer):
    """Distance of a picture from those that the model was validated on, by the model's features."""

    distance: float = Field(description="Mahalanobis distance, about 1 for a picture like them.")
    percentile: float = Field(
        description="Share of the validation pictures that are nearer, in percent; above 99 is unusual."
    )


class PredictAnswer(About):
    """All classes, highest score first."""

    task: str = Field(
        description="multiclass or binary: one class holds, the scores sum to 1; multilabel: each label has "
        "a score of its own."
    )
    predictions: list[Score]
    novelty: NoveltyAnswer | None = Field(
        None, description="null where the model's bundle has no reference, or LUCIDA_NOVELTY is false."
    )
    _observation: Any = PrivateAttr(None)

    def with_observation(self, observation: Observation | None) -> Self:
        """Keep the picture's figures with the answer, for the service's own watch; they are not sent."""
        self._observation = observation
        return self

    @property
    def observation(self) -> Observation | None:
        """The picture's figures; None where nothing is watched."""
        observation: Observation | None = self._observation
        return observation
