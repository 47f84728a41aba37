"""The answer of /predict."""

from __future__ import annotations

from pydantic import Field

from service.schemas.base import About, Score


class PredictAnswer(About):
    """All classes, highest score first."""

    task: str = Field(
        description="multiclass or binary: one class holds, the scores sum to 1; multilabel: each label has "
        "a score of its own."
    )
    predictions: list[Score]
