"""The answer of /explain."""

from __future__ import annotations

from service.schemas.evidence import Evidence
from service.schemas.predict import PredictAnswer


class ExplainAnswer(PredictAnswer):
    """A prediction with its evidence."""

    evidence: list[Evidence]
