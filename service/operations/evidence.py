"""Attributions and their faithfulness as JSON answers, for all operations that show a map."""

from __future__ import annotations

from models.attribution.result import Attribution
from models.explainer import Explanation
from models.images.encode import to_data_uri
from models.metrics.faithfulness import FaithfulnessResult
from models.metrics.warnings import audit_border
from models.observer import Novelty
from service import schemas
from service.inference.predictor import Predictor


def evidence_answer(
    predictor: Predictor, explanation: Explanation, attribution: Attribution, *, full_scale: float | None,
    overlay: bool = False, fade: float = 0.0,
) -> schemas.Evidence:  # fmt: skip
    """Return one map with where it lies and how far to trust it."""
    frame = explanation.frame
    cell_width, cell_height = frame.cell_size(attribution.rows, attribution.cols)
    x0, y0, x1, y1 = frame.seen_box
    drawn_overlay = None
    if overlay:
        side = predictor.settings.max_overlay_side
        drawn_overlay = to_data_uri(explanation.overlay(attribution, max_side=side, fade=fade))
    return schemas.Evidence(
        label=attribution.label,
        index=attribution.index,
        score=explanation.score(attribution),
        against=attribution.target.against,
        negative=attribution.target.negative,
        method=attribution.method,
        block=attribution.block,
        status=attribution.status,
        unit=attribution.unit,
        grid=schemas.Grid.of(attribution.values),
        full_scale=full_scale,
        cell_px=(round(cell_width, 3), round(cell_height, 3)),
        seen_box=(round(x0, 3), round(y0, 3), round(x1, 3), round(y1, 3)),
        settings=dict(attribution.settings),
        border=schemas.Border.model_validate(audit_border(attribution)),
        sanity=predictor.explainer.randomization_note(attribution.method),
        overlay=drawn_overlay,
        overlay_fade=fade if overlay else None,
    )


def with_faithfulness(evidence: schemas.Evidence, result: FaithfulnessResult | None) -> schemas.Evidence:
    """Return the evidence with the result of its faithfulness check, where there is one."""
    if result is None:
        return evidence
    return evidence.model_copy(update={"faithfulness": schemas.Faithfulness.model_validate(result)})


def suggestion_answers(predictor: Predictor, explanation: Explanation) -> list[schemas.SuggestionAnswer]:
    """Return what to ask instead of an explanation whose first map is empty."""
    return [
        schemas.SuggestionAnswer.model_validate(item) for item in predictor.explainer.suggest(explanation)
    ]


def score_answers(explanation: Explanation) -> list[schemas.Score]:
    """Return all classes, highest score first."""
    return [schemas.Score.model_validate(item) for item in explanation.predictions]


def novelty_answer(novelty: Novelty | None) -> schemas.NoveltyAnswer | None:
    """Return how unusual an image is, where that is known."""
    return schemas.NoveltyAnswer.model_validate(novelty) if novelty is not None else None


def unusual_warnings(novelty: Novelty | None) -> list[str]:
    """Return a sentence about an image that is unlike those of the validation; nothing for any other."""
    return [novelty.warning] if novelty is not None and novelty.warning is not None else []
