"""The answer of /filters."""

from __future__ import annotations

from pydantic import Field

from service.schemas.base import Answer, Origin


class TemplateAnswer(Answer):
    """A template of what one channel looks for."""

    block: str
    channel: int
    response: float = Field(description="Of the channel, before its activation function, on the picture.")
    start: float = Field(description="The same on the noise that it began from.")
    steps: int
    picture: str = Field(description="A JPEG data URI.")
    patches: list[str] = Field(
        default_factory=list,
        description="Parts of training pictures that drive it most, from the bundle's atlas.",
    )


class FiltersAnswer(Answer):
    """Templates of some channels."""

    templates: list[TemplateAnswer]
    provenance: Origin
