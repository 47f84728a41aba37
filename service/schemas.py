"""The shapes of the answers. Fields may be added; none is renamed or dropped."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """What every shape has in common: unknown fields are a mistake, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True)


class Score(Answer):
    """One class with its calibrated score."""

    label: str
    index: int
    score: float = Field(ge=0, le=1)
    accepted: bool = Field(
        description="Whether the model answers with this class: the highest score, or, where several labels "
        "can hold at once, every score from 0.5."
    )


class ImageSize(Answer):
    """Size of the upright picture, after its EXIF orientation was applied."""

    width: int
    height: int


class Provenance(Answer):
    """What made this answer."""

    model: str
    version: str | None = Field(description="Registered version; null when served from a plain folder.")
    run_id: str | None = Field(description="MLflow run that trained the model.")
    digest: str = Field(description="SHA-256 of the bundle.")
    backbone: str
    engine: str = Field(description="What ran the blocks: eager or openvino.")
    image_sha256: str = Field(description="Digest of the picture's bytes as they were sent.")


class Grid(Answer):
    """A signed map on the block's own grid, in units of the class's logit; above 0 speaks for the class."""

    rows: int
    cols: int
    values: list[list[float]] = Field(description="Rows from the top, each from the left.")
    min: float
    max: float


class Evidence(Answer):
    """Why one class: a map, where it lies on the picture, and whether it says anything."""

    label: str
    index: int
    score: float
    method: str
    block: str
    status: str = Field(description="ok, no_positive_evidence, no_gradient or not_finite.")
    grid: Grid
    cell_px: tuple[float, float] = Field(description="Width and height of one cell in pixels of the picture.")
    seen_box: tuple[float, float, float, float] = Field(
        description="x0, y0, x1, y1 of what the model saw, in pixels of the picture; the grid tiles this box."
    )
    overlay: str | None = Field(
        None, description="The picture with the map over it, as a JPEG data URI, if asked for."
    )


class PredictAnswer(Answer):
    """All classes, highest score first."""

    task: str = Field(
        description="multiclass or binary: one class holds, the scores sum to 1; multilabel: each label has "
        "a score of its own."
    )
    predictions: list[Score]
    image: ImageSize
    provenance: Provenance
    warnings: list[str]
    timing_ms: dict[str, float]


class ExplainAnswer(PredictAnswer):
    """A prediction with its evidence."""

    evidence: list[Evidence]


class ChannelAnswer(Answer):
    """One channel of a block."""

    index: int
    mean: float
    max: float


class BlockAnswer(Answer):
    """A block's output for the picture."""

    block: str
    shape: list[int] = Field(description="Channels, rows, columns.")
    mean: float
    std: float
    min: float
    max: float
    zero_share: float
    strongest: list[ChannelAnswer]


class ActivationsAnswer(Answer):
    """Intermediate activations of the chosen blocks, in the model's order."""

    activations: list[BlockAnswer]
    image: ImageSize
    provenance: Provenance
    warnings: list[str]
    timing_ms: dict[str, float]


class ErrorAnswer(Answer):
    """Every failure has this shape."""

    error: str = Field(description="One sentence that says what is wrong and what would be right.")
    kind: str = Field(description="A name for programs, such as unsupported_format.")
