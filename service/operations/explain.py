"""/explain: the prediction, and evidence for it."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from models.errors import DeadlineExceeded, UnknownChoice
from models.explainer import ExplainOptions, Explanation
from models.metrics.faithfulness import count_faithfulness_forwards, measure_faithfulness
from models.reference import control_bank
from service import schemas
from service.inference.predictor import Predictor
from service.inference.timing import Timer
from service.operations.evidence import (
    evidence_answer,
    novelty_answer,
    score_answers,
    suggestion_answers,
    unusual_warnings,
    with_faithfulness,
)
from service.operations.form import (
    Against,
    Block,
    Effort,
    ExplainFields,
    Fade,
    Flip,
    FormBool,
    Method,
    MethodParameters,
    Negative,
    Noise,
    Target,
)
from service.operations.operation import Operation

_MAX_COUNT = 200


class ExplainForm(ExplainFields):
    """Fields: what is explained, and how."""

    target: Target = None
    against: Against = None
    negative: Negative = False
    top_k: int = Field(
        1,
        description="Explain the k highest scores, where there is no target.",
        json_schema_extra={"minimum": 1},
    )
    block: Block = None
    method: Method = None
    parameters: MethodParameters = ""
    flip: Flip = False
    noise: Noise = 0.0
    effort: Effort = "full"
    faithfulness: FormBool = Field(False, description="Judge each map against control maps.")
    steps: int = Field(
        10,
        description="Of the faithfulness curves.",
        json_schema_extra={"minimum": 2, "maximum": _MAX_COUNT},
    )
    control_maps: int = Field(
        19,
        description="That faithfulness is held against.",
        json_schema_extra={"minimum": 1, "maximum": _MAX_COUNT},
    )
    overlay: FormBool = Field(False, description="Send the picture with the map over it.")
    fade: Fade = 0.0

    def options(self) -> ExplainOptions:
        """Return the fields as the explainer takes them."""
        return replace(super().options(), quick=self.effort == "quick")

    def extra_forwards(self) -> int:
        """Return the forwards of the faithfulness checks."""
        if not self.faithfulness:
            return 0
        return count_faithfulness_forwards(self.steps, self.control_maps) * self.top_k

    def check(self, predictor: Predictor, *, unlimited: bool = False) -> None:
        """Raise for what cannot be asked of this model."""
        for name, value, low in (("steps", self.steps, 2), ("control_maps", self.control_maps, 1)):
            if not low <= value <= _MAX_COUNT:
                raise UnknownChoice(name, value, (f"a whole number from {low} to {_MAX_COUNT}",))
        super().check(predictor, unlimited=unlimited)


def _explain(predictor: Predictor, data: bytes, form: ExplainForm) -> schemas.ExplainAnswer:
    timer = Timer()
    explanation = predictor.explain(data, form.options(), timer, partial=True)
    with timer.part("render"):
        evidence = [
            evidence_answer(
                predictor,
                explanation,
                item,
                full_scale=explanation.full_scale,
                overlay=form.overlay,
                fade=form.fade,
            )
            for item in explanation.attributions
        ]
    skipped: list[str] = []
    if form.faithfulness:
        with timer.part("faithfulness"):
            evidence, skipped = _check_faithfulness(predictor, explanation, evidence, form)
    observation = predictor.observe(explanation)
    novelty = predictor.novelty(observation)
    return schemas.ExplainAnswer(
        task=predictor.model.scoring.task,
        predictions=score_answers(explanation),
        evidence=evidence,
        suggestions=suggestion_answers(predictor, explanation),
        novelty=novelty_answer(novelty),
        **predictor.about_explanation(explanation, timer, skipped, warnings=unusual_warnings(novelty)),
    ).with_observation(observation)


def _check_faithfulness(
    predictor: Predictor, explanation: Explanation, evidence: list[schemas.Evidence], form: ExplainForm
) -> tuple[list[schemas.Evidence], list[str]]:
    """Return the evidence with the faithfulness of each map, and the maps for which there was no time."""
    checked, skipped = list(evidence), list[str]()
    for n, attribution in enumerate(explanation.attributions):
        if attribution.status != "ok":
            continue
        try:
            result = measure_faithfulness(
                predictor.backend, explanation.forward.x[0], attribution,
                bank=control_bank(predictor.explainer.reference), steps=form.steps,
                control_maps=form.control_maps,
            )  # fmt: skip
        except DeadlineExceeded:
            skipped.append(f"faithfulness: the map for {attribution.label} was not judged")
            continue
        checked[n] = with_faithfulness(evidence[n], result)
    return checked, skipped


OPERATION = Operation(
    name="explain", form=ExplainForm, run=_explain, answer=schemas.ExplainAnswer, several=True,
    summary="The prediction, and evidence for the class asked for or for the top k.",
)  # fmt: skip
