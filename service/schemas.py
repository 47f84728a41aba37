"""The shapes of the answers. Fields may be added; none is renamed or dropped."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

Box = tuple[float, float, float, float]


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


class Origin(Answer):
    """What made this answer."""

    model: str
    version: str | None = Field(description="Registered version; null when served from a plain folder.")
    run_id: str | None = Field(description="MLflow run that trained the model.")
    digest: str = Field(description="SHA-256 of the bundle.")
    backbone: str
    engine: str = Field(description="What ran the blocks: eager or openvino.")
    precision: str = Field("fp32", description="Of the engine: fp32 or bf16.")


class Provenance(Origin):
    """What made this answer, from what."""

    image_sha256: str = Field(description="Digest of the picture's bytes as they were sent.")
    reduction: int = Field(
        1, description="A large JPEG may be decoded at a half, a fourth or an eighth of its size: 2, 4 or 8."
    )


class About(Answer):
    """What every answer about a picture ends with."""

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
    values: list[list[float]] = Field(description="Rows from the top, each from the left.")
    min: float
    max: float


class Border(Answer):
    """How much of the evidence lies in the outermost cells, where the network sees its own padding."""

    mass: float
    area: float = Field(description="What an even map would have there.")
    suspicious: bool


class Curve(Answer):
    """Scores as more and more of the picture is covered or shown."""

    shares: list[float]
    scores: list[float]
    area: float


class Faithfulness(Answer):
    """Whether the model reacts to what the map marks."""

    score: float = Field(description="Insertion's area less deletion's.")
    percentile: float = Field(description="Share of random maps as smooth that do worse, percent.")
    random_maps: int
    centre: float = Field(description="The score of a plain spot in the middle.")
    cover: str
    deletion: Curve
    insertion: Curve
    verdict: str


class Evidence(Answer):
    """Why one class, or one and not another: a map, where it lies, and whether it says anything."""

    label: str
    index: int
    score: float
    against: str | None = Field(None, description="The class that it is held against, for a contrast.")
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
        description="x0, y0, x1, y1 of what the model saw, in pixels of the picture; the grid tiles this box."
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="All else that decided the values.")
    border: Border | None = None
    sanity: str | None = Field(None, description="How the method fared when the weights were shuffled.")
    faithfulness: Faithfulness | None = Field(None, description="If asked for.")
    overlay: str | None = Field(
        None, description="The picture with the map over it, as a JPEG data URI, if asked for."
    )


class PredictAnswer(About):
    """All classes, highest score first."""

    task: str = Field(
        description="multiclass or binary: one class holds, the scores sum to 1; multilabel: each label has "
        "a score of its own."
    )
    predictions: list[Score]


class ExplainAnswer(PredictAnswer):
    """A prediction with its evidence."""

    evidence: list[Evidence]


class Agreement(Answer):
    """How far several methods' maps agree."""

    methods: list[str]
    correlations: list[list[float]] = Field(description="Rank correlation of each pair.")
    mean: float
    overlap: float = Field(description="Share of the hottest fifth that two methods have in common.")
    left_out: dict[str, str] = Field(description="Methods that were not asked, with the reason.")
    verdict: str


class Move(Answer):
    """The crop moved by some pixels of the model's input, and with it all that the model sees."""

    right: int
    down: int
    score: float
    same_answer: bool
    correlation: float


class Shifts(Answer):
    """How far answer and map move with the picture."""

    score: float
    spread: float
    correlation: float
    moves: list[Move]
    verdict: str


class StageAnswer(Answer):
    """One stage of the network, explained and judged."""

    evidence: Evidence
    faithfulness: Faithfulness | None


class TrustAnswer(ExplainAnswer):
    """How far one explanation can be trusted; checks that were not asked for are null."""

    agreement: Agreement | None
    shifts: Shifts | None
    sweep: list[StageAnswer] | None


class TracedChannel(Answer):
    """One channel on its way through Grad-CAM."""

    index: int
    weight: float = Field(description="Step 3: the mean of the gradient over the positions.")
    share: float = Field(description="Of the map's sum, what this channel adds or takes away.")
    activation: list[list[float]] = Field(description="Step 1.")
    gradient: list[list[float]] = Field(description="Step 2.")


class TraceAnswer(PredictAnswer):
    """Grad-CAM's five steps; the last is the evidence's overlay."""

    logit: float = Field(description="Step 1: what is derived.")
    channels: int = Field(description="Of the block; those below matter most.")
    speaking_for: list[TracedChannel]
    speaking_against: list[TracedChannel]
    evidence: Evidence = Field(description="Steps 4 and 5.")


class Change(Answer):
    """Of one class's score."""

    label: str
    index: int
    before: float
    after: float
    change: float


class WhatIfAnswer(About):
    """The scores with a part of the picture covered."""

    changes: list[Change]
    cover: str
    share: float = Field(description="Of what the model sees, how much was covered.")
    covered: str | None = Field(None, description="The covered picture as a JPEG data URI, if asked for.")


class PartAnswer(Answer):
    """What came through one part of a block."""

    name: str
    channels: int
    total: float = Field(description="Sum of its map, in units of the logit.")
    without: float = Field(description="The logit when this part is cut off.")
    grid: Grid


class SplitAnswer(About):
    """The evidence at a block, by its branches or by skip and branch."""

    label: str
    against: str | None
    block: str
    kind: str = Field(description="inception or residual.")
    logit: float
    parts: list[PartAnswer]


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


class ActivationsAnswer(About):
    """Intermediate activations of the chosen blocks, in the model's order."""

    activations: list[BlockAnswer]


class TemplateAnswer(Answer):
    """What one channel looks for."""

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


CHECKS = ("faithfulness", "agreement", "shifts", "sweep")
"""Of /trust, as in models.metrics.audit, whose import would bring torch to whoever only reads answers."""


class FiltersAnswer(Answer):
    """Templates of some channels."""

    templates: list[TemplateAnswer]
    provenance: Origin


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
    """Latest first."""

    jobs: list[JobAnswer]


class SeveralAnswers(Answer):
    """To several pictures, in their order; one that cannot be used has its error in its place."""

    answers: list[PredictAnswer | ExplainAnswer | ErrorAnswer]


class ErrorAnswer(Answer):
    """Every failure has this shape."""

    error: str = Field(description="One sentence that says what is wrong and what would be right.")
    kind: str = Field(description="A name for programs, such as unsupported_format.")


class JobResult(Answer):
    """What a job has found so far, in the order of its pictures; complete when its state is done."""

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
        | ErrorAnswer
    ]


def numbers(text: str) -> list[int]:
    """Whole numbers with commas between; one that is no number is read as -1, which no channel has."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    return [int(part) if part.isascii() and part.isdigit() and len(part) < 7 else -1 for part in parts]
