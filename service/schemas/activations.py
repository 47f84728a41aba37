"""The answer of /activations."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from service.schemas.base import About, Answer


class ChannelAnswer(Answer):
    """One channel of a block."""

    index: int
    mean: float
    max: float = Field(validation_alias=AliasChoices("max", "maximum"))


class BlockAnswer(Answer):
    """A block's output for the image."""

    block: str
    shape: list[int] = Field(description="Channels, rows, columns.")
    mean: float
    std: float
    min: float = Field(validation_alias=AliasChoices("min", "minimum"))
    max: float = Field(validation_alias=AliasChoices("max", "maximum"))
    zero_share: float
    strongest: list[ChannelAnswer]


class ActivationsAnswer(About):
    """Intermediate activations of the chosen blocks, in the model's order."""

    activations: list[BlockAnswer]
