"""The text fields of each route, checked before any work is done; the OpenAPI document is made of them.

Ranges that the engine checks itself, with a sentence of its own, are only told to the document here.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.inference.request import Request

Target = Annotated[str | None, Field(description="Class to explain, by name; the highest score by default.")]
Against = Annotated[str | None, Field(description="A class that it is held against: why this, not that.")]
Block = Annotated[
    str | None, Field(description="Block to explain at; the model's Grad-CAM block by default.")
]
Method = Annotated[
    str | None, Field(description="One of the methods that GET /model names; its default_method by default.")
]


def _parse_bool(value: object) -> object:
    """A form has texts only; of these true and false are the two that cannot be meant otherwise."""
    if isinstance(value, str):
        if value.lower() not in {"true", "false"}:
            raise ValueError("it must be true or false")
        return value.lower() == "true"
    return value


FormBool = Annotated[bool, BeforeValidator(_parse_bool)]
Flip = Annotated[FormBool, Field(description="Average over the picture and its mirror image.")]
Noise = Annotated[
    float,
    Field(
        description="Average over noisy pictures: deviation, of the picture's range.",
        json_schema_extra={"minimum": 0, "maximum": 1},
    ),
]
AsPicture = Annotated[FormBool, Field(description="Answer with a PNG sheet instead of JSON.")]
Names = Annotated[str, Field(description="Names with commas between; all by default.")]


class Form(BaseModel):
    """What every route takes besides its pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    deadline_ms: int | None = Field(
        None,
        ge=1,
        le=3_600_000,
        description="Answer within so many milliseconds, and say in `cut` what there was no time for; the "
        "service's own limit by default, and at most.",
    )


class Asking(Form):
    """Fields that make a map; what a route has besides them is its own."""

    def request(self) -> Request:
        """As the engine takes it: those of the fields that a Request has."""
        return Request(**self.model_dump(include={each.name for each in fields(Request)}))


class PredictForm(Form):
    """Nothing else."""


class HeatmapForm(Asking):
    """What the heatmap is of."""

    target: Target = None
    against: Against = None
    block: Block = None
    method: Method = None
    flip: Flip = False
    noise: Noise = 0.0
    encoding: Literal["jpeg", "png"] = "jpeg"


class ExplainForm(Asking):
    """What is explained, and how."""

    target: Target = None
    against: Against = None
    top_k: int = Field(
        1,
        description="Explain the k highest scores, where there is no target.",
        json_schema_extra={"minimum": 1},
    )
    block: Block = None
    method: Method = None
    flip: Flip = False
    noise: Noise = 0.0
    effort: Literal["full", "quick"] = Field(
        "full",
        description="Of the methods that run the network many times: quick takes fewer steps or masks.",
    )
    faithfulness: FormBool = Field(False, description="Judge each map against random ones.")
    steps: int = Field(
        10,
        description="Of the faithfulness curves.",
        json_schema_extra={"minimum": 2, "maximum": 200},
    )
    random_maps: int = Field(
        19,
        description="That faithfulness is held against.",
        json_schema_extra={"minimum": 1, "maximum": 200},
    )
    overlay: FormBool = Field(False, description="Send the picture with the map over it.")


class TrustForm(Asking):
    """What is doubted."""

    target: Target = None
    against: Against = None
    block: Block = None
    method: Method = None
    flip: Flip = False
    checks: Names = ""
    overlay: FormBool = False
    picture: AsPicture = False


class InsideForm(Asking):
    """What is followed through the network by Grad-CAM."""

    target: Target = None
    against: Against = None
    block: Block = None
    picture: AsPicture = False


class WhatIfForm(Asking):
    """What is covered."""

    target: Target = None
    against: Against = None
    block: Block = None
    method: Method = None
    flip: Flip = False
    box: str = Field(
        "",
        description="x0,y0,x1,y1 in pixels of the upright picture; the hottest part by default.",
        json_schema_extra={"examples": ["40,60,160,180"]},
    )
    share: float = Field(
        0.15,
        gt=0,
        lt=1,
        description="Of the map, the hottest part to cover, where there is no box.",
    )
    cover: Literal["blur", "mean"] = Field("blur", description="What it is covered by.")
    overlay: FormBool = Field(False, description="Send the covered picture.")


class ActivationsForm(Form):
    """Which blocks are looked into."""

    blocks: Names = ""
    channels: int = Field(8, ge=1, le=32, description="Strongest channels of each block.")
    picture: AsPicture = False


def split_names(listed: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in listed.split(",") if name.strip()]
