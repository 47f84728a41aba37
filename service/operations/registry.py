"""What can be asked about a picture: one row for each route, and all that the rows have in common.

Everything that varies is in the table: the fields, the shape of the answer, what is called. Routes, jobs and
the OpenAPI document are made from it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from service import schemas
from service.inference.doubts import Doubts
from service.operations.forms import (
    ActivationsForm,
    ExplainForm,
    Form,
    HeatmapForm,
    InsideForm,
    PredictForm,
    TrustForm,
    WhatIfForm,
    split_names,
)


@dataclass(frozen=True, slots=True)
class ImageResponse:
    """A picture as an answer."""

    data: bytes = field(repr=False)
    media_type: str
    headers: dict[str, str] = field(default_factory=dict)


Answer = schemas.Answer | ImageResponse


@dataclass(frozen=True, slots=True)
class Operation:
    """One row of the table."""

    name: str
    form: type[Form]
    run: Callable[[Doubts, bytes, Any], Answer]
    answer: type[schemas.Answer] | None
    """The shape of its JSON; None for a route that only draws."""
    summary: str
    drawn: tuple[str, ...] = ()
    """Media types of its pictures."""
    many: bool = False
    """Whether one request may hold several pictures."""
    headers: tuple[str, ...] = ()
    """Of its pictures."""

    @property
    def path(self) -> str:
        """Where it is asked."""
        return f"/{self.name}"


def _predict(doubts: Doubts, data: bytes, form: PredictForm) -> Answer:
    return doubts.engine.predict(data)


def _explain(doubts: Doubts, data: bytes, form: ExplainForm) -> Answer:
    return doubts.engine.explain(data, form.request())


def _heatmap(doubts: Doubts, data: bytes, form: HeatmapForm) -> Answer:
    drawn, shown = doubts.engine.heatmap(data, form.request(), encoding=form.encoding)
    said = {"X-Lucida-Status": shown.status, "X-Lucida-Label": quote(shown.target.name)}
    return ImageResponse(drawn, f"image/{form.encoding}", said)


def _trust(doubts: Doubts, data: bytes, form: TrustForm) -> Answer:
    if form.picture and not form.checks:
        return ImageResponse(doubts.sweep_sheet(data, form.request()), "image/png")
    return doubts.trust(data, form.request(), split_names(form.checks))


def _trace(doubts: Doubts, data: bytes, form: InsideForm) -> Answer:
    if form.picture:
        return ImageResponse(doubts.trace_sheet(data, form.request()), "image/png")
    return doubts.trace(data, form.request())


def _what_if(doubts: Doubts, data: bytes, form: WhatIfForm) -> Answer:
    return doubts.what_if(data, form.request(), box=form.box, share=form.share, cover=form.cover)


def _split(doubts: Doubts, data: bytes, form: InsideForm) -> Answer:
    if form.picture:
        return ImageResponse(doubts.split_sheet(data, form.request()), "image/png")
    return doubts.split(data, form.request())


def _activations(doubts: Doubts, data: bytes, form: ActivationsForm) -> Answer:
    blocks = split_names(form.blocks)
    if form.picture:
        sheet = doubts.engine.activation_sheet(data, blocks=blocks, channels=form.channels)
        return ImageResponse(sheet, "image/png")
    return doubts.engine.activations(data, blocks=blocks, channels=form.channels)


OPERATIONS: dict[str, Operation] = {
    verb.name: verb
    for verb in (
        Operation(
            "predict", PredictForm, _predict, schemas.PredictAnswer, many=True,
            summary="Scores of all classes, highest first.",
        ),
        Operation(
            "explain", ExplainForm, _explain, schemas.ExplainAnswer, many=True,
            summary="The prediction, and evidence for the class asked for or for the top k.",
        ),
        Operation(
            "heatmap", HeatmapForm, _heatmap, None, drawn=("image/jpeg", "image/png"),
            headers=("X-Lucida-Status", "X-Lucida-Label"),
            summary="The picture with the map over it, at its own size.",
        ),
        Operation(
            "trust", TrustForm, _trust, schemas.TrustAnswer, drawn=("image/png",),
            summary="How far the evidence can be trusted: faithfulness, agreement, shifts and sweep, or the "
            "`checks` named; the sweep alone as a PNG with `picture` and no `checks`.",
        ),
        Operation(
            "trace", InsideForm, _trace, schemas.TraceAnswer, drawn=("image/png",),
            summary="Grad-CAM's five steps, with the channels that matter most.",
        ),
        Operation(
            "whatif", WhatIfForm, _what_if, schemas.WhatIfAnswer,
            summary="The change of every score when a box, or the hottest part of the map, is covered.",
        ),
        Operation(
            "split", InsideForm, _split, schemas.SplitAnswer, drawn=("image/png",),
            summary="The evidence by the branches of a block, or by its skip and branch.",
        ),
        Operation(
            "activations", ActivationsForm, _activations, schemas.ActivationsAnswer,
            drawn=("image/png",),
            summary="Shapes, statistics and strongest channels of blocks.",
        ),
    )
}  # fmt: skip
