"""The answer of /explain."""

from __future__ import annotations

from pydantic import Field

from service.schemas.evidence import Evidence, Suggestion
from service.schemas.predict import PredictAnswer


class ExplainAnswer(PredictAnswer):
    """A prediction with its evidence."""

    evidence: list[Evidence]
    suggestions: list[Suggestion] = Field(
        default_factory=list,
        description="Where the first map is empty, what to ask instead: the nearest question first.",
    )
