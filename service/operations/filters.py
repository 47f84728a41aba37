"""Filters: templates of what channels look for; a job, and a few at once by GET /filters."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from models.errors import UnknownChoice
from models.images.decode import image_from_array
from models.images.encode import to_data_uri
from models.introspection.feature_visualization import synthesize_templates
from service import schemas
from service.inference.predictor import Predictor
from service.operations.form import Block, Form
from service.operations.operation import Operation


class FiltersForm(Form):
    """Fields: the templates to make."""

    block: Block = None
    channels: str = Field("0", description="Numbers with commas between, 64 at most.")
    steps: int = Field(160, ge=1, le=1024)

    def check(self, predictor: Predictor, *, unlimited: bool = False) -> None:
        """Raise UnknownChoice for a block that the model does not have."""
        if self.block is not None:
            predictor.model.index_of(self.block)


def synthesize(
    predictor: Predictor, block: str, channels: Sequence[int], steps: int, *, most: int, most_steps: int
) -> schemas.FiltersAnswer:
    """Synthesize templates of a few channels, as data URIs; raises UnknownChoice beyond the limits."""
    if not 1 <= len(channels) <= most or not 1 <= steps <= most_steps:
        raise UnknownChoice(
            "request",
            f"{len(channels)} channels, {steps} steps",
            (f"1 to {most} channels, 1 to {most_steps} steps",),
        )
    templates = [
        schemas.TemplateAnswer(
            block=template.block,
            channel=template.channel,
            response=template.response,
            start=template.start,
            steps=template.steps,
            picture=to_data_uri(image_from_array(template.image).pil),
        )
        for template in synthesize_templates(predictor.model, block, channels, steps=steps)
    ]
    return schemas.FiltersAnswer(templates=templates, provenance=predictor.origin())


def _filters(predictor: Predictor, data: bytes, form: FiltersForm) -> schemas.FiltersAnswer:
    block = form.block or predictor.model.cam_block
    channels = schemas.parse_numbers(form.channels)
    return synthesize(predictor, block, channels, form.steps, most=64, most_steps=1024)


OPERATION = Operation(
    name="filters", form=FiltersForm, run=_filters, answer=schemas.FiltersAnswer, takes_image=False,
    route=False, summary="What channels look for, made on the spot.",
)  # fmt: skip
