"""One judged image to look at: where the answer comes from, where the truth would have, and the training
images that the network finds most alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from models.attribution.result import STATUS_MEANINGS
from models.attribution.targets import make_target
from models.errors import LucidaError
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image
from models.networks.predictions import Prediction
from models.networks.transfer_model import TransferModel
from models.progress import Progress
from models.visualization.overlay import draw_contrast_overlay, draw_overlay
from pipelines.data.dataset import Sample
from pipelines.evaluation.classification import EvaluatedSample, embed_samples

SHOWN_SIDE = 360
_NEAREST = 3
_NEAREST_SIDE = 150
_MOST_COMPARED = 4000


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training image near to a judged one."""

    image: PIL.Image.Image
    label: str
    name: str
    similarity: float
    """Cosine of the angle between the two in the space that the head sees, -1 to 1."""
    same_class: bool
    """Whether it has a class that is true of the judged image."""


@dataclass(frozen=True, slots=True)
class ReviewCase:
    """An image of a review."""

    evaluated: EvaluatedSample
    split: str
    image: PIL.Image.Image
    other: Prediction
    """The class that the answer is held against: the truth of a mistake, the runner-up of a right answer."""
    predicted: PIL.Image.Image
    """Overlay for the answer or, where its map is empty, for the question suggested instead."""
    instead: str | None
    """What ``predicted`` shows instead of an empty map."""
    beside: PIL.Image.Image
    """Overlay for the other class, on the same scale."""
    contrast: PIL.Image.Image
    """Overlay of the difference: orange speaks for the answer, blue for the other class."""
    seen_share: float
    """Share of the image's area that the model saw."""
    neighbours: tuple[Neighbour, ...]
    notes: tuple[str, ...]


class NeighbourIndex:
    """The training images in the space that the head sees."""

    def __init__(self, model: TransferModel, samples: Sequence[Sample], progress: Progress) -> None:
        """Embed the images, of a large set 4,000 drawn by their digests."""
        self.classes = model.classes
        self.samples = sorted(samples, key=lambda sample: sample.sha256)[:_MOST_COMPARED]
        self._directions = torch.nn.functional.normalize(
            embed_samples(model, self.samples, progress=progress), dim=1
        )

    def nearest(self, vector: Tensor, labels: Sequence[int], sha256: str) -> tuple[Neighbour, ...]:
        """Return the most similar training images of one judged image (features,), itself left out."""
        cosine = self._directions @ torch.nn.functional.normalize(vector, dim=0)
        neighbours: list[Neighbour] = []
        for place in torch.argsort(cosine, descending=True, stable=True).tolist():
            sample = self.samples[place]
            if sample.sha256 == sha256:
                continue
            image = read_image(sample.path).pil
            image.thumbnail((_NEAREST_SIDE, _NEAREST_SIDE))
            label = " + ".join(self.classes[class_number] for class_number in sample.labels) or "none"
            alike = bool(set(labels) & set(sample.labels))
            neighbours.append(Neighbour(image, label, sample.name, float(cosine[place]), alike))
            if len(neighbours) == _NEAREST:
                break
        return tuple(neighbours)


def explain_samples(
    model: TransferModel,
    evaluated: Sequence[EvaluatedSample],
    split: str,
    index: NeighbourIndex,
    progress: Progress,
    *,
    what: str,
) -> list[ReviewCase]:
    """Explain each sample; ``what`` names the work for the progress."""
    cases: list[ReviewCase] = []
    for item in evaluated:
        (vector,) = embed_samples(model, [item.sample])
        near = index.nearest(vector, item.sample.labels, item.sample.sha256)
        cases.append(_case(model, item, split, near))
        progress(what, len(cases), len(evaluated))
    return cases


def _case(
    model: TransferModel, evaluated: EvaluatedSample, split: str, near: tuple[Neighbour, ...]
) -> ReviewCase:
    image = read_image(evaluated.sample.path)
    explainer = Explainer(model)
    prepared = explainer.prepare(image)
    frame = prepared.frame
    other = _held_against(evaluated)
    targets = [make_target(model.classes, item.index) for item in (evaluated.predicted, other)]
    options = ExplainOptions(method=explainer.default_method, quick=True)
    (explanation,) = explainer.explain_batch([prepared], options, targets=[targets])
    if isinstance(explanation, LucidaError):
        raise explanation
    predicted, beside = explanation.attributions
    suggestion = next(iter(explainer.suggest(explanation)), None)
    scale = max(predicted.maximum, beside.maximum)
    notes = dict.fromkeys(
        f"{attribution.label}: {STATUS_MEANINGS[attribution.status]}"
        for attribution in (predicted, beside)
        if attribution.status != "ok"
    )
    if suggestion is not None:
        first = draw_overlay(image, frame, suggestion.attribution, max_side=SHOWN_SIDE)
    else:
        first = draw_overlay(image, frame, predicted, max_side=SHOWN_SIDE, full_scale=scale)
    pil_image = image.pil.copy()
    pil_image.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    return ReviewCase(
        evaluated=evaluated,
        split=split,
        image=pil_image,
        other=other,
        predicted=first,
        instead=suggestion.reason if suggestion is not None else None,
        beside=draw_overlay(image, frame, beside, max_side=SHOWN_SIDE, full_scale=scale),
        contrast=draw_contrast_overlay(image, frame, predicted, beside, max_side=SHOWN_SIDE),
        seen_share=frame.seen_share,
        neighbours=near,
        notes=tuple(notes),
    )


def _held_against(evaluated: EvaluatedSample) -> Prediction:
    """Return the class that the answer is held against; the answer itself where every class is true."""
    if not evaluated.is_correct:
        return evaluated.target
    labels = {*evaluated.sample.labels, evaluated.predicted.index}
    return next((item for item in evaluated.ranking if item.index not in labels), evaluated.target)


def cases_to_columns(cases: Sequence[ReviewCase]) -> dict[str, list[object]]:
    """Return the cases as columns of a table; the overlays are uint8 arrays (height, width, 3)."""
    return {
        "split": [case.split for case in cases],
        "picture": [case.evaluated.sample.name for case in cases],
        "truth": [case.evaluated.truth for case in cases],
        "answer": [case.evaluated.answer for case in cases],
        "score": [case.evaluated.predicted.score for case in cases],
        "truth_score": [case.evaluated.truth_score for case in cases],
        "seen_share": [case.seen_share for case in cases],
        "sha256": [case.evaluated.sample.sha256 for case in cases],
        "nearest": [", ".join(f"{n.name} ({n.similarity:.2f})" for n in case.neighbours) for case in cases],
        "evidence_for_answer": [np.asarray(case.predicted) for case in cases],
        "evidence_for_truth": [np.asarray(case.beside) for case in cases],
        "difference": [np.asarray(case.contrast) for case in cases],
    }
