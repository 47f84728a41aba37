"""The answer of /trust."""

from __future__ import annotations

from pydantic import Field

from service.schemas.base import Answer
from service.schemas.evidence import Evidence, Faithfulness
from service.schemas.explain import ExplainAnswer

CHECKS = ("faithfulness", "agreement", "shifts", "sweep")
"""As in models.metrics.audit, whose import would bring torch to whoever only reads answers."""


class Agreement(Answer):
    """A measure of how far several methods' maps agree."""

    methods: list[str]
    correlations: list[list[float]] = Field(description="Rank correlation of each pair.")
    mean: float
    overlap: float = Field(description="Share of the hottest fifth that two methods have in common.")
    left_out: dict[str, str] = Field(description="Methods that were not asked, with the reason.")
    verdict: str


class Move(Answer):
    """The crop moved by some pixels of the model's input, and with it all that the model sees."""

    right: int
    down: int
    score: float
    same_answer: bool
    correlation: float


class Shifts(Answer):
    """A measure of how far answer and map move with the image."""

    score: float
    spread: float
    correlation: float
    moves: list[Move]
    verdict: str


class StageAnswer(Answer):
    """A stage of the network, explained and checked."""

    evidence: Evidence
    faithfulness: Faithfulness | None


class TrustAnswer(ExplainAnswer):
    """Checks of one explanation; those that were not requested are null."""

    agreement: Agreement | None
    shifts: Shifts | None
    sweep: list[StageAnswer] | None
