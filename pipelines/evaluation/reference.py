"""The reference of a model: its validation images in figures, for its bundle."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.errors import LucidaError
from models.explainer import Explainer
from models.images.decode import read_image
from models.metrics.control_maps import select_bank
from models.observer import Observer, build_reference
from models.progress import Progress, no_progress
from models.reference import Observation, Reference
from pipelines.data.dataset import Sample

MOST_MEASURED = 2000
_BATCH = 16


def measure_reference(
    explainer: Explainer, samples: Sequence[Sample], *, progress: Progress = no_progress
) -> Reference:
    """Explain the samples' predicted classes by the default method, and return their figures, and some of
    their maps; of more than 2,000 samples those whose digests come first.

    Raises what explaining one of them raises.
    """
    chosen = sorted(samples, key=lambda sample: sample.sha256)[:MOST_MEASURED]
    observer = Observer(explainer)
    observations: list[Observation] = []
    maps: list[np.ndarray] = []
    for start in range(0, len(chosen), _BATCH):
        part = chosen[start : start + _BATCH]
        images = [explainer.prepare(read_image(sample.path)) for sample in part]
        if explainer.default_method in explainer.disabled:
            observations += [observer.predict(image)[1] for image in images]
        else:
            for place, explanation in enumerate(explainer.explain_batch(images)):
                if isinstance(explanation, LucidaError):
                    raise explanation
                observations.append(observer.observe_explanation(explanation, place))
                maps += [item.values for item in explanation.attributions if item.status == "ok"]
        progress("measuring the validation pictures", start + len(part), len(chosen))
    return build_reference(observations, classes=len(explainer.model.classes), control_maps=select_bank(maps))
