"""The shared parts of all answers. Fields may be added; none is renamed or dropped."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

Box = tuple[float, float, float, float]


def _to_lists(value: Any) -> Any:
    """Turn an array into nested lists, without this module knowing NumPy."""
    return value.tolist() if hasattr(value, "tolist") else value


Matrix = Annotated[list[list[float]], BeforeValidator(_to_lists)]
"""Rows from the top, each from the left; made from an array or from lists."""


class Answer(BaseModel):
    """Base of every shape: unknown fields are a mistake, numbers are finite, values are read by attribute."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, frozen=True, from_attributes=True)


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
    """Size of the upright image, after its EXIF orientation was applied, and how much of it the model saw."""

    width: int
    height: int
    view: str = Field(
        "crop",
        description="What the model sees: the centre (crop), the whole picture resized to its input (whole), "
        "or the whole in its own shape with margins (pad).",
    )
    seen_share: float = Field(1.0, description="Share of the picture's area that the model saw, 0 to 1.")


class Origin(Answer):
    """The maker of this answer."""

    model: str
    version: str | None = Field(description="Registered version; null when served from a plain folder.")
    run_id: str | None = Field(description="MLflow run that trained the model.")
    digest: str = Field(description="SHA-256 of the bundle.")
    backbone: str
    engine: str = Field(description="What ran the blocks: eager, compile or openvino.")
    precision: str = Field("fp32", description="Of the engine: fp32, bf16 or int8.")
    device: str = Field("cpu", description="Where the model computed.")
    engine_trials: dict[str, float] = Field(
        default_factory=dict,
        description="Milliseconds that a prediction took each engine, where the service chose the fastest; "
        "empty where the engine was set.",
    )


class Provenance(Origin):
    """The maker of this answer, and its input."""

    image_sha256: str = Field(description="Digest of the picture's bytes as they were sent.")
    reduction: int = Field(
        1, description="A large JPEG may be decoded at a half, a fourth or an eighth of its size: 2, 4 or 8."
    )


class About(Answer):
    """Fields with which every answer about an image ends."""

    image: ImageSize
    provenance: Provenance
    warnings: list[str] = Field(description="What a reader should know before trusting the answer.")
    cut: list[str] = Field(
        default_factory=list, description="What was asked for and left out, because the deadline came first."
    )
    timing_ms: dict[str, float]


class Grid(Answer):
    """A signed map on its own grid; above 0 speaks for the target."""

    rows: int
    cols: int
    values: Matrix = Field(description="Rows from the top, each from the left.")
    min: float
    max: float

    @classmethod
    def of(cls, values: Any) -> Grid:
        """Build from an array (rows, cols)."""
        rows, cols = values.shape
        return cls(rows=rows, cols=cols, values=values, min=float(values.min()), max=float(values.max()))


def _to_grid(value: Any) -> Any:
    return Grid.of(value) if hasattr(value, "shape") else value


MapGrid = Annotated[Grid, BeforeValidator(_to_grid), Field(validation_alias=AliasChoices("grid", "values"))]
"""A grid that is read from the attribute ``values`` of what it describes."""


class ErrorAnswer(Answer):
    """A failure; every one has this shape."""

    error: str = Field(description="One sentence that says what is wrong and what would be right.")
    kind: str = Field(description="A name for programs, such as unsupported_format.")


def parse_numbers(text: str) -> list[int]:
    """Read whole numbers with commas between; one that is no number becomes -1, which no channel has."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [int(part) if part.isascii() and part.isdigit() and len(part) < 7 else -1 for part in parts]
