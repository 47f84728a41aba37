"""/trust: how far the evidence for one target can be trusted."""

from __future__ import annotations

from models.explainer import Explanation
from models.images.encode import encode_image
from models.metrics.agreement import MethodAgreement
from models.metrics.audit import Audit, check_names, run_audit
from models.metrics.layer_sweep import SweepStage
from models.reference import control_bank
from models.visualization.figures import draw_sweep_figure
from service import schemas
from service.inference.predictor import Predictor
from service.inference.timing import Timer
from service.operations.evidence import (
    evidence_answer,
    novelty_answer,
    score_answers,
    suggestion_answers,
    with_faithfulness,
)
from service.operations.form import (
    Against,
    AsImage,
    Block,
    Effort,
    ExplainFields,
    Flip,
    FormBool,
    Method,
    MethodParameters,
    Names,
    Negative,
    Target,
    split_names,
)
from service.operations.operation import ImageResponse, Operation


class TrustForm(ExplainFields):
    """Fields: the checks to make."""

    target: Target = None
    against: Against = None
    negative: Negative = False
    block: Block = None
    method: Method = None
    parameters: MethodParameters = ""
    flip: Flip = False
    checks: Names = ""
    effort: Effort = "quick"
    overlay: FormBool = False
    picture: AsImage = False

    def check(self, predictor: Predictor, *, unlimited: bool = False) -> None:
        """Raise for what cannot be asked of this model."""
        super().check(predictor, unlimited=unlimited)
        check_names(split_names(self.checks))


def _trust(predictor: Predictor, data: bytes, form: TrustForm) -> schemas.TrustAnswer | ImageResponse:
    if form.picture and not form.checks:
        explanation = predictor.explain(data, form.options())
        stages = _audit(predictor, explanation, ["sweep"], form).sweep or ()
        figure = draw_sweep_figure(explanation.image, explanation.frame, stages)
        return ImageResponse(encode_image(figure, "png"), "image/png")
    timer = Timer()
    explanation = predictor.explain(data, form.options(), timer, partial=True)
    if not explanation.attributions:
        return _without_a_map(predictor, explanation, timer)
    with timer.part("checks"):
        audit = _audit(predictor, explanation, split_names(form.checks), form)
    evidence = evidence_answer(
        predictor, explanation, audit.attribution, full_scale=explanation.full_scale, overlay=form.overlay
    )
    return schemas.TrustAnswer(
        task=predictor.model.scoring.task,
        predictions=score_answers(explanation),
        novelty=novelty_answer(predictor.novelty(predictor.observe(explanation))),
        evidence=[with_faithfulness(evidence, audit.faithfulness)],
        suggestions=suggestion_answers(predictor, explanation),
        agreement=_agreement_answer(audit.agreement, dict(audit.left_out)),
        shifts=schemas.Shifts.model_validate(audit.shifts) if audit.shifts is not None else None,
        sweep=None
        if audit.sweep is None
        else [_stage_answer(predictor, explanation, stage) for stage in audit.sweep],
        **predictor.about_explanation(
            explanation, timer, [f"{name}: there was no time for all of it" for name in audit.skipped]
        ),
    )


def _without_a_map(predictor: Predictor, explanation: Explanation, timer: Timer) -> schemas.TrustAnswer:
    """Return the prediction alone, where there was no time for more."""
    return schemas.TrustAnswer(
        task=predictor.model.scoring.task,
        predictions=score_answers(explanation),
        novelty=novelty_answer(predictor.novelty(predictor.observe(explanation))),
        evidence=[],
        agreement=None,
        shifts=None,
        sweep=None,
        **predictor.about_explanation(explanation, timer, ["checks: there was no map to check"]),
    )


def _audit(predictor: Predictor, explanation: Explanation, checks: list[str], form: TrustForm) -> Audit:
    return run_audit(
        explanation.image,
        explanation.forward,
        explanation.attributions[0],
        disabled=predictor.explainer.disabled,
        bank=control_bank(predictor.explainer.reference),
        checks=checks,
        quick=form.effort == "quick",
    )


def _agreement_answer(
    agreement: MethodAgreement | None, left_out: dict[str, str]
) -> schemas.Agreement | None:
    if agreement is None:
        return None
    return schemas.Agreement(
        methods=list(agreement.methods),
        correlations=[list(correlations) for correlations in agreement.correlations],
        mean=agreement.mean,
        overlap=agreement.overlap,
        left_out=left_out,
        verdict=agreement.verdict,
    )


def _stage_answer(predictor: Predictor, explanation: Explanation, stage: SweepStage) -> schemas.StageAnswer:
    own_scale = max(stage.attribution.maximum, 0.0) or None
    return schemas.StageAnswer(
        evidence=evidence_answer(predictor, explanation, stage.attribution, full_scale=own_scale),
        faithfulness=None
        if stage.faithfulness is None
        else schemas.Faithfulness.model_validate(stage.faithfulness),
    )


OPERATION = Operation(
    name="trust", form=TrustForm, run=_trust, answer=schemas.TrustAnswer, image_types=("image/png",),
    summary="How far the evidence can be trusted: faithfulness, agreement, shifts and sweep, or the "
    "`checks` named; the sweep alone as a PNG with `picture` and no `checks`.",
)  # fmt: skip
