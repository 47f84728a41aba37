"""The answers of /concepts."""

from __future__ import annotations

from pydantic import AliasChoices, Field

from service.schemas.base import About, Answer, MapGrid, Origin


class ConceptAnswer(Answer):
    """A concept of the model: a direction of a block's features that its evidence runs along."""

    number: int
    name: str = Field(description="What people call it, or its number as words.")
    present: int = Field(description="Pictures that have it, of those that were measured.")
    share: float = Field(description="Of the predicted class's logit, the mean over those pictures.")
    loss: float = Field(description="How far the predicted class's score falls without it, on average.")
    flips: int = Field(description="Of the measured pictures, those that get another class without it.")
    by_class: dict[str, float] = Field(description="Mean share by predicted class.")
    patches: list[str] = Field(description="Parts of training pictures with most of it, as data URIs.")


class ConceptsAnswer(Answer):
    """All concepts of the model."""

    block: str
    method: str = Field(description="factorization or sparse_autoencoder.")
    fitted: int = Field(description="Pictures that they were found on.")
    measured: int = Field(description="Pictures that they were measured on.")
    concepts: list[ConceptAnswer]
    provenance: Origin


class ConceptShareAnswer(Answer):
    """The part of one concept in one prediction."""

    number: int
    name: str
    share: float = Field(description="Of the logit: how much of its rise runs through this concept.")
    score_without: float = Field(description="The score when it is taken out of the block's features.")
    label_without: str = Field(description="The class that is predicted then.")
    strength: float = Field(description="Its largest value, of the level from which a cell counts.")
    present: bool = Field(description="Whether the picture has it.")
    grid: MapGrid = Field(
        validation_alias=AliasChoices("grid", "codes"), description="How much of it is where, from 0."
    )


class ConceptSharesAnswer(About):
    """One prediction by concepts: base, shares, rest and residual add up to the logit."""

    label: str
    against: str | None
    block: str
    score: float
    logit: float
    base: float = Field(description="The logit for the mean features at every place.")
    rest: float = Field(description="What runs through features that no concept describes.")
    residual: float = Field(description="What the integral misses: mostly below 5 % of the logit less base.")
    predicted: str = Field(description="The class that the model predicts.")
    seen_box: tuple[float, float, float, float] = Field(description="Where the grids lie on the picture.")
    concepts: list[ConceptShareAnswer] = Field(description="All of them, the largest share first, in size.")
