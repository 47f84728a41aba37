"""/split: the evidence at a block by its parts."""

from __future__ import annotations

from models.attribution.registry import DEFAULT_METHOD
from models.attribution.result import make_attribution
from models.explainer import Explanation
from models.images.encode import encode_image
from models.introspection.decomposition import Decomposition, decompose, last_block_with_parts
from models.visualization.figures import draw_decomposition_figure
from service import schemas
from service.inference.predictor import Predictor
from service.inference.timing import Timer
from service.operations.form import Against, AsImage, Block, ExplainFields, Target
from service.operations.operation import ImageResponse, Operation


class SplitForm(ExplainFields):
    """Fields: the evidence to split by the parts of a block."""

    target: Target = None
    against: Against = None
    block: Block = None
    picture: AsImage = False


def _split(predictor: Predictor, data: bytes, form: SplitForm) -> schemas.SplitAnswer | ImageResponse:
    timer = Timer()
    explanation, result = _decompose(predictor, data, form, timer)
    if form.picture:
        parts = [
            make_attribution(result.target, part.values, method=DEFAULT_METHOD, block=result.block)
            for part in result.parts
        ]
        figure = draw_decomposition_figure(explanation.image, explanation.frame, result, parts)
        return ImageResponse(encode_image(figure, "png"), "image/png")
    return schemas.SplitAnswer(
        label=result.target.label,
        against=result.target.against,
        block=result.block,
        kind=result.kind,
        logit=result.logit,
        parts=[schemas.PartAnswer.model_validate(part) for part in result.parts],
        **predictor.about_explanation(explanation, timer),
    )


def _decompose(
    predictor: Predictor, data: bytes, form: SplitForm, timer: Timer
) -> tuple[Explanation, Decomposition]:
    predictor.explainer.check_enabled(DEFAULT_METHOD)
    explanation = predictor.explain(data, form.options(), timer)
    block = form.block or last_block_with_parts(predictor.model)
    target = explanation.attributions[0].target
    with timer.part("split"):
        result = decompose(
            predictor.model, explanation.forward.x[0], target, block, backend=predictor.backend
        )
    return explanation, result


OPERATION = Operation(
    name="split", form=SplitForm, run=_split, answer=schemas.SplitAnswer, image_types=("image/png",),
    summary="The evidence by the branches of a block, or by its skip and branch.",
)  # fmt: skip
