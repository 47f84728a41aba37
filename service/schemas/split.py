"""The answer of /split."""

from __future__ import annotations

from pydantic import Field

from service.schemas.base import About, Answer, MapGrid


class PartAnswer(Answer):
    """The evidence that came through one part of a block."""

    name: str
    channels: int
    total: float = Field(description="Sum of its map, in units of the logit.")
    without: float = Field(description="The logit when this part is cut off.")
    grid: MapGrid


class SplitAnswer(About):
    """The evidence at a block, by its branches or by skip and branch."""

    label: str
    against: str | None
    block: str
    kind: str = Field(description="inception or residual.")
    logit: float
    parts: list[PartAnswer]
