"""One map with where it lies and how far to trust it."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from service.schemas.base import Answer, Box, Grid


class Border(Answer):
    """Share of the evidence in the outermost cells, where the network sees its own padding."""

    mass: float
    area: float = Field(description="What an even map would have there.")
    suspicious: bool


class Curve(Answer):
    """Scores as more and more of the image is covered or shown."""

    shares: list[float]
    scores: list[float]
    area: float


class Faithfulness(Answer):
    """A measure of whether the model reacts to what the map marks."""

    score: float = Field(description="Insertion's area less deletion's.")
    percentile: float = Field(description="Share of the control maps that do worse, percent.")
    control_maps: int = Field(
        description="Maps of other pictures, mirrored ones, a spot in the middle, the picture's edges, and "
        "random ones as smooth."
    )
    single_deletion: float = Field(
        description="Rank correlation, -1 to 1, of the map with what the logit loses patch by patch."
    )
    single_percentile: float = Field(description="Share of the control maps whose is lower, percent.")
    disagree: bool = Field(
        description="Whether one test finds a reaction, and by the other half of the controls do as well."
    )
    centre: float = Field(description="The score of a plain spot in the middle.")
    cover: str
    deletion: Curve
    insertion: Curve
    verdict: str


class SuggestionAnswer(Answer):
    """Another question about the same picture, which was tried and has a map to show."""

    reason: str = Field(description="What it shows, as a sentence.")
    options: dict[str, str] = Field(description="Fields of /explain and /heatmap that ask it.")


class Evidence(Answer):
    """A map for one class, or for one and not another: where it lies, and whether it says anything."""

    label: str
    index: int
    score: float
    against: str | None = Field(None, description="The class that it is held against, for a contrast.")
    negative: bool = Field(False, description="Whether the map shows what speaks against the class.")
    method: str
    block: str = Field(description='The block that was read, or "input" for a method that asks the pixels.')
    status: str = Field(description="ok, no_positive_evidence, no_gradient or not_finite.")
    unit: str = Field("logit", description="What the values are shares or changes of: logit or score.")
    grid: Grid
    full_scale: float | None = Field(
        None,
        description="What full colour stands for in the overlay: one figure for all maps of an answer and, "
        "for methods that read a block, the predicted class's, so that a faint map looks faint. null where "
        "there is no positive evidence.",
    )
    cell_px: tuple[float, float] = Field(description="Width and height of one cell in pixels of the picture.")
    seen_box: Box = Field(
        description="x0, y0, x1, y1 of what the model saw, in pixels of the picture; the grid tiles this "
        "box, which reaches beyond a picture that was given margins (pad)."
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="All else that decided the values.")
    border: Border | None = None
    sanity: str | None = Field(None, description="How the method fared when the weights were shuffled.")
    faithfulness: Faithfulness | None = Field(None, description="If asked for.")
    overlay: str | None = Field(
        None, description="The picture with the map over it, as a JPEG data URI, if asked for."
    )
    overlay_fade: float | None = Field(
        None, description="Share of full colour below which the overlay shows nothing; the values have all."
    )
