"""Answers about jobs, and answers to several images."""

from __future__ import annotations

from pydantic import Field

from service.schemas.activations import ActivationsAnswer
from service.schemas.base import Answer, ErrorAnswer
from service.schemas.concepts import ConceptSharesAnswer
from service.schemas.explain import ExplainAnswer
from service.schemas.filters import FiltersAnswer
from service.schemas.predict import PredictAnswer
from service.schemas.split import SplitAnswer
from service.schemas.trace import TraceAnswer
from service.schemas.trust import TrustAnswer
from service.schemas.whatif import WhatIfAnswer


class JobAnswer(Answer):
    """A job and how far it is."""

    id: str
    verb: str
    state: str = Field(description="queued, running, done, failed or cancelled.")
    pictures: int
    done: int = Field(description="Answers found so far.")
    progress: float = Field(ge=0, le=1)
    eta_seconds: float | None = Field(description="Until it is done, as far as can be told.")
    created: float = Field(description="Seconds since 1970, as the other times.")
    started: float | None
    ended: float | None
    error: str | None


class JobsAnswer(Answer):
    """Jobs, latest first."""

    jobs: list[JobAnswer]


class SeveralAnswers(Answer):
    """Answers to several images, in their order; one that cannot be used has its error in its place."""

    answers: list[PredictAnswer | ExplainAnswer | ErrorAnswer]


class JobResult(Answer):
    """Results of a job so far, in the order of its images; complete when its state is done."""

    id: str
    state: str
    answers: list[
        TrustAnswer
        | ExplainAnswer
        | TraceAnswer
        | PredictAnswer
        | WhatIfAnswer
        | SplitAnswer
        | ActivationsAnswer
        | FiltersAnswer
        | ConceptSharesAnswer
        | ErrorAnswer
    ]
