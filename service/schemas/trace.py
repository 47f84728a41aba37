"""The answer of /trace."""

from __future__ import annotations

from pydantic import Field

from service.schemas.base import Answer, Matrix
from service.schemas.evidence import Evidence
from service.schemas.predict import PredictAnswer


class TracedChannel(Answer):
    """One channel on its way through Grad-CAM."""

    index: int
    weight: float = Field(description="Step 3: the mean of the gradient over the positions.")
    share: float = Field(description="Of the map's sum, what this channel adds or takes away.")
    activation: Matrix = Field(description="Step 1.")
    gradient: Matrix = Field(description="Step 2.")


class TraceAnswer(PredictAnswer):
    """Grad-CAM's five steps; the last is the evidence's overlay."""

    logit: float = Field(description="Step 1: what is derived.")
    channels: int = Field(description="Of the block; those below matter most.")
    speaking_for: list[TracedChannel]
    speaking_against: list[TracedChannel]
    evidence: Evidence = Field(description="Steps 4 and 5.")
