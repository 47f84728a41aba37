"""Maps together with what their colours are to be measured by."""

from __future__ import annotations

from collections.abc import Sequence

from models.attribution.forward import ForwardPass
from models.attribution.perturbation import Effort
from models.attribution.registry import DEFAULT_METHOD, METHODS, attribute, get_method
from models.attribution.result import Attribution, shared_scale
from models.attribution.smoothing import Smoothing, attribute_smoothed
from models.attribution.targets import Target, make_target


def attribute_scaled(
    evidence: ForwardPass,
    targets: Sequence[Sequence[Target]],
    *,
    method: str = DEFAULT_METHOD,
    smoothing: Smoothing | None = None,
    effort: Effort | None = None,
) -> list[tuple[list[Attribution], float | None]]:
    """For each picture the maps of its targets, and one full scale for them: the strongest evidence among
    them and, where a map costs one backward, of the class with the highest logit, so that evidence for a
    class that lost looks as faint as it is. None where nothing is positive.

    Raises as :func:`models.attribution.registry.attribute` does.
    """
    asked = [list(of_one) for of_one in targets]
    if get_method(method).grid == "block":
        tops = [make_target(evidence.model.classes, top) for top in evidence.logits.argmax(1).tolist()]
        # Mostly it is the predicted class that is asked about, whose map is among them then.
        if any(top not in of_one for top, of_one in zip(tops, asked, strict=True)):
            asked = [[*of_one, top] for top, of_one in zip(tops, asked, strict=True)]
    if smoothing is not None and smoothing.on:
        maps = attribute_smoothed(evidence, asked, smoothing, method=method, effort=effort)
    else:
        maps = attribute(evidence, asked, method=method, effort=effort)
    return [(found[: len(of_one)], shared_scale(found)) for found, of_one in zip(maps, targets, strict=True)]


def default_method(barred: Sequence[str] | dict[str, str]) -> str | None:
    """The first method of the table that is not barred; None where all are."""
    return next((name for name in METHODS if name not in barred), None)
