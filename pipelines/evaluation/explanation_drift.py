"""How far the evidence moved between two versions, on the same pictures and for their true classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from models.attribution.result import Attribution
from models.attribution.targets import make_target
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image
from models.images.frame import Frame
from models.metrics.agreement import hottest_overlap, rank_correlation
from models.progress import Progress, no_progress
from pipelines.data.dataset import Sample
from pipelines.evaluation.phase_snapshots import evidence_moved

PlacedMap = tuple[Attribution, Frame]
"""A map, and where it lies in its image."""
Group = Literal["both right", "one right", "both wrong"]
_COMPARED_SIDE = 96
_BATCH = 16


@dataclass(frozen=True, slots=True)
class PictureDrift:
    """A picture with how far the evidence for its true class moved."""

    name: str
    sha256: str
    label: str
    """The true class."""
    group: Group
    rank_correlation: float
    overlap: float
    """Of the hottest fifth of the cells, 0 to 1."""
    moved: float | None
    """Share of the positive evidence that lies elsewhere, 0 to 1; None where one of the maps has none."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ExplainedSample:
    """A sample with whether the model is right and its map for the true class."""

    sample: Sample
    is_correct: bool
    placed: PlacedMap


def explain_truths(
    explainer: Explainer, samples: Sequence[Sample], *, progress: Progress = no_progress
) -> list[ExplainedSample]:
    """Return each sample with the map of its true class, by the first method that the model allows.

    Samples in which no class holds are left out.
    """
    options = ExplainOptions(method=explainer.default_method, quick=True)
    labelled = [sample for sample in samples if sample.labels]
    explained = []
    for start in range(0, len(labelled), _BATCH):
        part = labelled[start : start + _BATCH]
        images = [explainer.prepare(read_image(sample.path)) for sample in part]
        targets = [[make_target(explainer.model.classes, sample.labels[0])] for sample in part]
        results = explainer.explain_batch(images, options, targets=targets)
        for sample, result in zip(part, results, strict=True):
            if isinstance(result, Exception):
                raise result
            right = {item.index for item in result.predictions if item.accepted} == set(sample.labels)
            explained.append(ExplainedSample(sample, right, (result.attributions[0], result.frame)))
        progress("explaining the held-out pictures", start + len(part), len(labelled))
    return explained


def measure_drift(
    before: Sequence[ExplainedSample], after: Sequence[ExplainedSample], classes: Sequence[str]
) -> list[PictureDrift]:
    """Return how far each picture's evidence moved; both sequences are of the same pictures in order, and
    ``classes`` are those of the first.
    """
    drifts = []
    for one, other in zip(before, after, strict=True):
        maps = on_one_grid(one.placed, other.placed)
        right = one.is_correct + other.is_correct
        group: Group = "both right" if right == 2 else "one right" if right else "both wrong"
        drifts.append(
            PictureDrift(
                one.sample.name, one.sample.sha256, classes[one.sample.labels[0]], group,
                rank_correlation(*maps), hottest_overlap(*maps), evidence_moved(*maps),
            )
        )  # fmt: skip
    return drifts


def on_one_grid(first: PlacedMap, second: PlacedMap) -> tuple[np.ndarray, np.ndarray]:
    """Return both maps on one grid: each cell repeated, where two backbones differ in theirs, or both laid
    over a small version of the image, where the models see different parts of it.
    """
    (one, frame), (other, other_frame) = first, second
    if frame != other_frame:
        laid, beside = (
            place.resized_to(_COMPARED_SIDE).unwarp(item.values) for item, place in (first, second)
        )
        return np.nan_to_num(laid), np.nan_to_num(beside)
    rows, cols = int(np.lcm(one.rows, other.rows)), int(np.lcm(one.cols, other.cols))
    repeated, also = (
        item.values.repeat(rows // item.rows, axis=0).repeat(cols // item.cols, axis=1)
        for item in (one, other)
    )
    return repeated, also
