"""/activations: what each block answered."""

from __future__ import annotations

from pydantic import Field

from models.images.encode import encode_image
from models.introspection.activations import collect_activations
from models.visualization.contact_sheet import draw_activation_sheet
from service import schemas
from service.inference.predictor import Predictor
from service.inference.timing import Timer
from service.operations.form import AsImage, Form, Names, split_names
from service.operations.operation import ImageResponse, Operation


class ActivationsForm(Form):
    """Fields: the blocks to look into."""

    blocks: Names = ""
    channels: int = Field(8, ge=1, le=32, description="Strongest channels of each block.")
    picture: AsImage = False

    def check(self, predictor: Predictor, *, unlimited: bool = False) -> None:
        """Raise UnknownChoice for a block that the model does not have."""
        for block in split_names(self.blocks):
            predictor.model.index_of(block)


def _activations(
    predictor: Predictor, data: bytes, form: ActivationsForm
) -> schemas.ActivationsAnswer | ImageResponse:
    timer = Timer()
    form.check(predictor)
    names = split_names(form.blocks) or list(predictor.model.blocks_with_map)
    image = predictor.read(data, timer)
    with timer.part("model"):
        blocks = collect_activations(predictor.model, image.x[None], blocks=names, channels=form.channels)
    if form.picture:
        sheet = draw_activation_sheet(blocks, columns=form.channels)
        return ImageResponse(encode_image(sheet, "png"), "image/png")
    return schemas.ActivationsAnswer(
        activations=[schemas.BlockAnswer.model_validate(block) for block in blocks],
        **predictor.about(image.image, timer, image.warnings),
    )


OPERATION = Operation(
    name="activations", form=ActivationsForm, run=_activations, answer=schemas.ActivationsAnswer,
    image_types=("image/png",), summary="Shapes, statistics and strongest channels of blocks.",
)  # fmt: skip
