"""The search for shortcuts: look, propose, suspect, test, and report what survives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from models.explainer import Explainer
from models.progress import Progress, no_progress
from pipelines.evaluation.paired import Interval, bootstrap
from pipelines.shortcuts.evidence import SearchImage, SeenImage, look_at
from pipelines.shortcuts.interventions import Intervention, intervene
from pipelines.shortcuts.metadata import Leak, find_leaks
from pipelines.shortcuts.proposals import propose
from pipelines.shortcuts.statistics import holm
from pipelines.shortcuts.suspicions import Suspicion, suspect

LEVEL = 0.05
_LEAST_EFFECT = 0.3
"""Nats of log odds beyond the control, below which a shortcut is not worth telling."""
_FEWEST_OTHERS = 5


@dataclass(frozen=True)
class TestedSuspicion:
    """A suspicion with what the interventions said."""

    suspicion: Suspicion
    intervention: Intervention = field(repr=False)
    p_value: float
    """Corrected for the number of suspicions (Holm)."""
    removed: Interval
    added: Interval
    """By how many nats of log odds the class falls without it and rises with it, beyond the controls."""

    @property
    def survives(self) -> bool:
        """Whether it is reported as a finding."""
        effects = [effect.value >= _LEAST_EFFECT and effect.low > 0 for effect in (self.removed, self.added)]
        return self.p_value < LEVEL and (any if self.suspicion.is_foreign else all)(effects)


@dataclass(frozen=True)
class ShortcutSearch:
    """The outcome of a search."""

    images: tuple[SeenImage, ...] = field(repr=False)
    failed: tuple[tuple[str, str], ...]
    """Names of pictures that could not be used, and why."""
    proposals: int
    """Parts that were looked at."""
    tested: tuple[TestedSuspicion, ...]
    leaks: tuple[Leak, ...]

    @property
    def findings(self) -> tuple[TestedSuspicion, ...]:
        """What survived, the strongest first."""
        surviving = (item for item in self.tested if item.survives)
        return tuple(sorted(surviving, key=lambda item: -item.removed.value))

    def prevalence(self, item: TestedSuspicion) -> tuple[float, float]:
        """Return in which share of its class's pictures, and of the others', it is."""
        own = sum(image.label == item.suspicion.label for image in self.images)
        others = len(self.images) - own
        return len(item.suspicion.carriers) / own, len(item.suspicion.elsewhere) / max(1, others)


def find_shortcuts(
    explainer: Explainer,
    images: Sequence[SearchImage],
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> ShortcutSearch:
    """Search pictures for what a model relies on beside the objects; the same input, the same answer.

    Findings have passed three controls and the correction for the number of suspicions; leaks are facts, such
    as the size of a picture, that tell its class on pictures that were held out.
    """
    seen, failed = look_at(explainer, images, progress=progress)
    proposals = propose(seen, seed=seed)
    suspicions = suspect(seen, proposals)
    results: list[tuple[Suspicion, Intervention]] = []
    for number, suspicion in enumerate(suspicions, start=1):
        others = [
            image
            for image in seen
            if suspicion.label not in (image.label, image.predicted) and image.name not in suspicion.elsewhere
        ]
        if len(others) >= _FEWEST_OTHERS:
            carried_out = intervene(
                explainer, suspicion.editor, suspicion.carriers, others, suspicion.label, seed=seed
            )
            results.append((suspicion, carried_out))
        progress("testing what is suspected", number, len(suspicions))
    corrected = holm([_p_value(suspicion, result) for suspicion, result in results])
    tested = [
        TestedSuspicion(
            suspicion,
            result,
            p_value,
            _mean(result.removed - result.elsewhere),
            _mean(result.added - result.added_control),
        )
        for (suspicion, result), p_value in zip(results, corrected, strict=True)
    ]
    return ShortcutSearch(
        tuple(seen), tuple(failed), len(proposals), tuple(tested), tuple(find_leaks(seen, seed=seed))
    )


def _p_value(suspicion: Suspicion, result: Intervention) -> float:
    """Return the p value of a suspicion before the correction for their number.

    What cannot be a part of an object is a shortcut where either taking it out or putting it in has an effect
    (the smaller p value, twice): a model that knows the object, too, needs no mark, and follows it still. A
    part beside the objects must have both effects.
    """
    both = (result.p_removed, result.p_added)
    return min(1.0, 2 * min(both)) if suspicion.is_foreign else max(both)


def _mean(values: np.ndarray) -> Interval:
    return bootstrap(lambda draw: float(values[draw].mean()), len(values))
