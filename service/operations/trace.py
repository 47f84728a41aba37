"""/trace: Grad-CAM's five steps."""

from __future__ import annotations

from models.attribution.registry import DEFAULT_METHOD
from models.explainer import Explanation
from models.images.encode import encode_image
from models.introspection.gradcam_trace import GradCamTrace, trace_grad_cam
from models.visualization.figures import draw_trace_figure
from service import schemas
from service.inference.predictor import Predictor
from service.inference.timing import Timer
from service.operations.evidence import evidence_answer, novelty_answer, score_answers
from service.operations.form import Against, AsImage, Block, ExplainFields, Target
from service.operations.operation import ImageResponse, Operation


class TraceForm(ExplainFields):
    """Fields: the evidence to follow through the steps of Grad-CAM."""

    target: Target = None
    against: Against = None
    block: Block = None
    picture: AsImage = False


def _trace(predictor: Predictor, data: bytes, form: TraceForm) -> schemas.TraceAnswer | ImageResponse:
    timer = Timer()
    explanation, trace = _trace_image(predictor, data, form, timer)
    if form.picture:
        figure = draw_trace_figure(explanation.image, explanation.frame, trace)
        return ImageResponse(encode_image(figure, "png"), "image/png")
    return schemas.TraceAnswer(
        task=predictor.model.scoring.task,
        predictions=score_answers(explanation),
        novelty=novelty_answer(predictor.novelty(predictor.observe(explanation))),
        logit=trace.logit,
        channels=trace.channels,
        speaking_for=[schemas.TracedChannel.model_validate(item) for item in trace.speaking_for],
        speaking_against=[schemas.TracedChannel.model_validate(item) for item in trace.speaking_against],
        evidence=evidence_answer(
            predictor, explanation, trace.attribution, full_scale=explanation.full_scale, overlay=True
        ),
        **predictor.about_explanation(explanation, timer),
    )


def _trace_image(
    predictor: Predictor, data: bytes, form: TraceForm, timer: Timer
) -> tuple[Explanation, GradCamTrace]:
    predictor.explainer.check_enabled(DEFAULT_METHOD)
    explanation = predictor.explain(data, form.options(), timer)
    with timer.part("trace"):
        return explanation, trace_grad_cam(explanation.forward, 0, explanation.attributions[0].target)


OPERATION = Operation(
    name="trace", form=TraceForm, run=_trace, answer=schemas.TraceAnswer, image_types=("image/png",),
    summary="Grad-CAM's five steps, with the channels that matter most.",
)  # fmt: skip
