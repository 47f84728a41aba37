"""Maps together with the full scale by which their colours are measured."""

from __future__ import annotations

from collections.abc import Sequence

from models.attribution.forward import ForwardPass
from models.attribution.parameters import Parameters
from models.attribution.registry import DEFAULT_METHOD, attribute
from models.attribution.result import Attribution, shared_scale
from models.attribution.smoothing import Smoothing, attribute_smoothed
from models.attribution.targets import Target, make_target


def attribute_scaled(
    forward: ForwardPass,
    targets: Sequence[Sequence[Target]],
    *,
    method: str = DEFAULT_METHOD,
    smoothing: Smoothing | None = None,
    parameters: Parameters | None = None,
) -> list[tuple[list[Attribution], float | None]]:
    """Return for each image the maps of its targets, and one full scale for them.

    The scale is the strongest evidence among the maps and of the class with the highest logit, so that
    evidence for a class that lost looks as faint as it is. It is None where nothing is positive. Raises as
    :func:`models.attribution.registry.attribute` does.
    """
    requested = [list(image_targets) for image_targets in targets]
    tops = [make_target(forward.model.classes, top) for top in forward.logits.argmax(1).tolist()]
    # Mostly it is the predicted class that is explained, whose map is among them then.
    if any(top not in image_targets for top, image_targets in zip(tops, requested, strict=True)):
        requested = [[*image_targets, top] for top, image_targets in zip(tops, requested, strict=True)]
    if smoothing is not None and smoothing.on:
        maps = attribute_smoothed(forward, requested, smoothing, method=method, parameters=parameters)
    else:
        maps = attribute(forward, requested, method=method, parameters=parameters)
    return [
        (image_maps[: len(image_targets)], shared_scale(image_maps))
        for image_maps, image_targets in zip(maps, targets, strict=True)
    ]
