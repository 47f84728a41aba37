"""/concepts: what share each concept has in a prediction, and what the model says without it."""

from __future__ import annotations

from http import HTTPStatus

from models.introspection.concept_set import ConceptSet
from models.introspection.concepts import explain_by_concepts
from service import schemas
from service.errors import HTTPError
from service.inference.predictor import Predictor
from service.inference.timing import Timer
from service.operations.form import Against, ExplainFields, Target
from service.operations.operation import Operation

_FORWARDS = 200
"""What the integral costs at most, a backward counted as two; an absence costs one more."""
_NO_CONCEPTS = (
    "The model was packaged without concepts; `lucida concepts` finds them, `lucida package --concepts` adds "
    "them."
)


class ConceptsForm(ExplainFields):
    """Fields: the class whose logit is shared out."""

    target: Target = None
    against: Against = None

    def check(self, predictor: Predictor, *, unlimited: bool = False) -> None:
        """Raise for what cannot be asked of this model, before any image is looked at."""
        forwards = _FORWARDS + len(concepts_of(predictor))
        predictor.check(self.options(), extra_forwards=forwards, unlimited=unlimited)


def concepts_of(predictor: Predictor) -> ConceptSet:
    """Return the model's concepts; raises HTTPError for a model that has none."""
    if predictor.concepts is None:
        raise HTTPError(HTTPStatus.NOT_FOUND, "no_concepts", _NO_CONCEPTS)
    return predictor.concepts


def list_concepts(predictor: Predictor) -> schemas.ConceptsAnswer:
    """Return all concepts with what was measured of them; raises HTTPError."""
    concepts = concepts_of(predictor)
    return schemas.ConceptsAnswer(
        block=concepts.block,
        method=concepts.method,
        fitted=concepts.summary["fitted"],
        measured=concepts.summary["measured"],
        concepts=[
            schemas.ConceptAnswer(
                **{
                    **{name: entry[name] for name in ("present", "share", "loss", "flips", "by_class")},
                    "number": number,
                    "name": concepts.title(number),
                    "patches": [patch["crop"] for patch in entry["patches"]],
                }
            )
            for number, entry in enumerate(concepts.entries)
        ],
        provenance=predictor.origin(),
    )


def _share_out(predictor: Predictor, data: bytes, form: ConceptsForm) -> schemas.ConceptSharesAnswer:
    timer = Timer()
    concepts = concepts_of(predictor)
    explanation = predictor.explain(data, form.options(), timer)
    target = explanation.attributions[0].target
    with timer.part("concepts"):
        result = explain_by_concepts(predictor.backend, explanation.forward.x[0], target, concepts)
    x0, y0, x1, y1 = explanation.frame.seen_box
    return schemas.ConceptSharesAnswer(
        label=target.label,
        against=target.against,
        block=result.block,
        score=result.score,
        logit=result.logit,
        base=result.base,
        rest=result.rest,
        residual=result.residual,
        predicted=result.label,
        seen_box=(round(x0, 3), round(y0, 3), round(x1, 3), round(y1, 3)),
        concepts=[schemas.ConceptShareAnswer.model_validate(share) for share in result.shares],
        **predictor.about_explanation(explanation, timer),
    )


OPERATION = Operation(
    name="concepts", form=ConceptsForm, run=_share_out, answer=schemas.ConceptSharesAnswer,
    failures=("404",),
    summary="The share of each of the model's concepts in a prediction, and the score without it.",
)  # fmt: skip
