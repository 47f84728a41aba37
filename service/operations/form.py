"""Text fields that several operations share, checked before any work is done; OpenAPI is made of them.

Ranges that the predictor checks itself, with a sentence of its own, are only stated for OpenAPI here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from models.errors import UnknownChoice
from models.explainer import ExplainOptions
from service.inference.predictor import Predictor


def _parse_bool(value: object) -> object:
    """Read true and false, which cannot be meant otherwise; a form has texts only."""
    if isinstance(value, str):
        if value.lower() not in {"true", "false"}:
            raise ValueError("it must be true or false")
        return value.lower() == "true"
    return value


FormBool = Annotated[bool, BeforeValidator(_parse_bool)]
Target = Annotated[str | None, Field(description="Class to explain, by name; the highest score by default.")]
Against = Annotated[str | None, Field(description="A class that it is held against: why this, not that.")]
Negative = Annotated[
    FormBool, Field(description="Explain what speaks against the class; not together with against.")
]
Block = Annotated[
    str | None, Field(description="Block to explain at; the method's default_block of GET /model by default.")
]
Method = Annotated[
    str | None, Field(description="One of the methods that GET /model names; its default_method by default.")
]
MethodParameters = Annotated[
    str,
    Field(
        description="Parameters of the method as name=value with commas between, such as masks=800,seed=3.",
        json_schema_extra={"examples": ["cell=16"]},
    ),
]
Flip = Annotated[FormBool, Field(description="Average over the picture and its mirror image.")]
Fade = Annotated[
    float,
    Field(
        ge=0.0,
        le=0.9,
        description="Share of full colour below which the overlay shows nothing; the values keep all.",
    ),
]
Noise = Annotated[
    float,
    Field(
        description="Average over noisy pictures: deviation, of the picture's range.",
        json_schema_extra={"minimum": 0, "maximum": 1},
    ),
]
Effort = Annotated[
    Literal["full", "quick"],
    Field(description="Of the methods that run the network many times: quick takes fewer steps or masks."),
]
AsImage = Annotated[FormBool, Field(description="Answer with a PNG sheet instead of JSON.")]
Names = Annotated[str, Field(description="Names with commas between; all by default.")]


class Form(BaseModel):
    """Fields that every operation takes besides its images."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    deadline_ms: int | None = Field(
        None,
        ge=1,
        le=3_600_000,
        description="Answer within so many milliseconds, and say in `cut` what there was no time for; the "
        "service's own limit by default, and at most.",
    )

    def check(self, predictor: Predictor, *, unlimited: bool = False) -> None:
        """Raise for what cannot be asked of this model, before any image is looked at."""

    def as_json(self) -> Self:
        """Return the form that asks for JSON, where it may ask for an image."""
        return self.model_copy(update={"picture": False}) if "picture" in type(self).model_fields else self


class ExplainFields(Form):
    """A form that makes a map; its fields are those of :class:`ExplainOptions` that it declares."""

    def options(self) -> ExplainOptions:
        """Return the fields as the explainer takes them."""
        fields: dict[str, Any] = self.model_dump(include=_OPTION_FIELDS)
        if fields.get("parameters"):
            fields["parameters"] = parse_parameters(fields["parameters"])
        else:
            fields.pop("parameters", None)
        return ExplainOptions(**fields)

    def extra_forwards(self) -> int:
        """Return the forwards that are asked for beyond the map."""
        return 0

    def check(self, predictor: Predictor, *, unlimited: bool = False) -> None:
        """Raise for what cannot be asked of this model, before any image is looked at."""
        predictor.check(self.options(), extra_forwards=self.extra_forwards(), unlimited=unlimited)


_OPTION_FIELDS = {"target", "against", "top_k", "block", "method", "parameters", "flip", "noise", "negative"}


def split_names(listed: str) -> list[str]:
    """Split names at their commas."""
    return [name.strip() for name in listed.split(",") if name.strip()]


def parse_parameters(text: str) -> dict[str, str]:
    """Read "name=value,name=value"; raises UnknownChoice for anything else."""
    parameters = {}
    for part in split_names(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise UnknownChoice("parameters", text, ("name=value with commas between, such as masks=800",))
        parameters[name.strip()] = value.strip()
    return parameters
