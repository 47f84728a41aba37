"""Further targets of a picture in a batch: the true class, the highest scores, and contrasts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from models.attribution.result import Attribution
from models.attribution.targets import Target, make_target
from models.errors import UnknownChoice
from models.explainer import Explainer, ExplainOptions, Explanation, PreparedImage
from models.metrics.warnings import audit_border

TRUTH, CONTRAST = "truth", "contrast"
_TOP = re.compile(r"top([2-9]|[1-9][0-9])")


def check_also(names: Sequence[str]) -> tuple[str, ...]:
    """Return the names, each once; raises UnknownChoice for one that is none of truth, contrast and topN."""
    for name in names:
        if name not in (TRUTH, CONTRAST) and _TOP.fullmatch(name) is None:
            raise UnknownChoice("further target", name, (TRUTH, CONTRAST, "top2", "top3", "… top99"))
    return tuple(dict.fromkeys(names))


def explain_also(
    explainer: Explainer,
    images: Sequence[PreparedImage],
    explanations: Sequence[Explanation],
    truths: Sequence[str | None],
    names: Sequence[str],
    options: ExplainOptions,
) -> list[list[dict[str, Any]]]:
    """Return for each explained picture a row for each further target; none for a truth that is not known, is
    no class of the model, or is explained by the picture's own map already.

    One more pass for all pictures together.
    """
    chosen = [
        _targets(explainer.model.classes, explanation, truth, names)
        for explanation, truth in zip(explanations, truths, strict=True)
    ]
    most = max((len(targets) for targets in chosen), default=0)
    if not most:
        return [[] for _ in images]
    # A pass explains as many targets of each picture; where there are fewer, the first is asked again.
    filled = [
        [target for _, target in (*targets, *[(TRUTH, _first(explanation))] * (most - len(targets)))]
        for targets, explanation in zip(chosen, explanations, strict=True)
    ]
    maps = explainer.attribute(images, filled, options=options)
    return [
        [
            _row(role, attribution, explanation)
            for (role, _), attribution in zip(targets, own_maps, strict=False)
        ]
        for targets, own_maps, explanation in zip(chosen, maps, explanations, strict=True)
    ]


def _targets(
    classes: Sequence[str], explanation: Explanation, truth: str | None, names: Sequence[str]
) -> list[tuple[str, Target]]:
    own, ranking = explanation.attributions[0].target, explanation.predictions
    targets: list[tuple[str, Target]] = []
    for name in names:
        if name == TRUTH:
            if truth in classes:
                targets.append((TRUTH, make_target(classes, classes.index(str(truth)))))
        elif name == CONTRAST:
            first = ranking[0].index
            wrong = truth in classes and classes.index(str(truth)) != first
            other = classes.index(str(truth)) if wrong else ranking[1].index if len(ranking) > 1 else None
            if other is not None:
                targets.append((CONTRAST, make_target(classes, first, other)))
        else:
            count = int(name.removeprefix("top"))
            targets += [
                (f"top{rank}", make_target(classes, item.index))
                for rank, item in enumerate(ranking[:count], start=1)
            ]
    return [(role, target) for role, target in targets if target != own]


def _first(explanation: Explanation) -> Target:
    return explanation.attributions[0].target


def _row(role: str, attribution: Attribution, explanation: Explanation) -> dict[str, Any]:
    scores: Mapping[int, float] = {item.index: item.score for item in explanation.predictions}
    return {
        "role": role,
        "target": attribution.label,
        "against": attribution.target.against,
        "score": scores[attribution.index],
        "unit": attribution.unit,
        "grid": attribution.values.ravel().tolist(),
        "status": attribution.status,
        "border_mass": audit_border(attribution).mass,
    }
