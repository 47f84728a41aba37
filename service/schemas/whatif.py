"""The answer of /whatif."""

from __future__ import annotations

from pydantic import Field

from service.schemas.base import About, Answer


class Change(Answer):
    """A change of one class's score."""

    label: str
    index: int
    before: float
    after: float
    change: float


class WhatIfAnswer(About):
    """The scores with a part of the image covered."""

    changes: list[Change]
    cover: str
    share: float = Field(description="Of what the model sees, how much was covered.")
    covered: str | None = Field(None, description="The covered picture as a JPEG data URI, if asked for.")
