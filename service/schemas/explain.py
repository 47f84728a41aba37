"""The answer of /explain."""

from __future__ import annotations

from pydantic import Field

from service.schemas.evidence import Evidence, SuggestionAnswer
from service.schemas.predict import PredictAnswer


class ExplainAnswer(PredictAnswer):
    """A prediction with its evidence."""

    evidence: list[Evidence]
    suggestions: list[SuggestionAnswer] = Field(
        default_factory=list,
        description="Where the first map is empty, what to ask instead: the nearest question first.",
    )
