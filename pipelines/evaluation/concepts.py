"""The concepts of a model over a data set: what they look like, what they do to its answers, and whether they
are the parts that people have marked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from models.attribution.forward import run_forward
from models.attribution.targets import make_target
from models.devices import to_host
from models.errors import UnknownChoice
from models.explainer import Explainer
from models.images.decode import read_image
from models.introspection.concept_set import FACTORIZATION, ConceptSet
from models.introspection.concepts import ConceptExplanation, explain_by_concepts
from models.metrics.layer_sweep import find_fine_block
from models.progress import Progress, no_progress
from pipelines.data.dataset import Dataset, Sample
from pipelines.errors import DataError
from pipelines.evaluation.concept_fitting import FittedDirections, fit_directions
from pipelines.evaluation.concept_parts import PartMatch, match_parts

_BATCH = 16
_LEVEL = 0.3
"""Of a concept's largest codes, in the tenth of the pictures that have most of it."""
_TENTH = 10
MOST_MEASURED = 60
"""Held-out pictures whose predictions are shared out to the concepts."""


@dataclass(frozen=True, slots=True)
class ConceptMeasure:
    """The effect of one concept on the predictions of the measured pictures."""

    number: int
    present: int
    """Pictures that have it: more than stray cells."""
    share: float
    """Of the predicted class's logit, the mean over the pictures that have it."""
    flips: int
    """Pictures whose predicted class is another one without it."""
    loss: float
    """How far the predicted class's score falls without it, the mean over the pictures that have it."""
    by_class: dict[str, float]
    """Mean share by predicted class, over the pictures that have it."""


@dataclass(frozen=True, slots=True)
class ConceptStudy:
    """Concepts with what was measured of them."""

    concepts: ConceptSet
    measures: tuple[ConceptMeasure, ...]
    """By number; those with the largest shares have the lowest."""
    strongest: tuple[tuple[Sample, ...], ...] = field(repr=False)
    """By number: the pictures with the largest codes, of those that they were fitted on."""
    fitted: int
    measured: int
    residual: float
    """Share of the features under the evidence that the concepts do not describe."""
    described: float
    """Share of the logits' rise over the mean features' that runs through concepts."""
    parts: tuple[PartMatch, ...]


def study_concepts(
    explainer: Explainer, data: Dataset, *, block: str | None = None, label: str | None = None,
    count: int = 12, method: str = FACTORIZATION, most: int = 300, patches: int = 6, seed: int = 0,
    progress: Progress = no_progress,
) -> ConceptStudy:  # fmt: skip
    """Find the concepts of a block on training pictures, all or those of one class, and measure them on the
    validation pictures.

    Raises UnknownChoice for a block or class that the model does not have, DataError without pictures.
    """
    model = explainer.model
    chosen = spread_by_class(_of_class(data, data.train, label), most)
    held_out = spread_by_class(_of_class(data, data.val, label), MOST_MEASURED)
    for split, samples in (("training", chosen), ("validation", held_out)):
        if not samples:
            of_class = f" of {label}" if label is not None else ""
            raise DataError(f"The data set {data.name} has no {split} pictures{of_class}.")
    if not model.blocks_with_map:
        raise DataError(f"{model.backbone.name} passes no map on, so it has no features with a place.")
    block = block or find_fine_block(model)
    model.index_of(block)
    features, gradients = _collect(explainer, chosen, block, progress)
    evidence = (features * gradients).sum(1)
    fitted = fit_directions(features, evidence, count, method=method, seed=seed, progress=progress)
    concepts = _concept_set(explainer, fitted, block, method, features, gradients)
    codes = concepts.encode(features)
    explained = [
        _explain(explainer, sample, concepts, progress, n, len(held_out)) for n, sample in enumerate(held_out)
    ]
    return ConceptStudy(
        concepts=concepts,
        measures=tuple(_measure(k, explained) for k in range(count)),
        strongest=tuple(
            tuple(chosen[n] for n in _largest(codes[:, k].amax((1, 2)), patches)) for k in range(count)
        ),
        fitted=len(chosen),
        measured=len(held_out),
        residual=fitted.residual,
        described=_described(explained),
        parts=tuple(match_parts(model, data, concepts, (chosen, codes), held_out, explainer.backend)),
    )


def spread_by_class(samples: Sequence[Sample], most: int) -> list[Sample]:
    """Return at most so many samples, as many of each class as of the others, in the order of their digests,
    so that the same pictures are chosen in whatever order they are listed.
    """
    by_class: dict[tuple[int, ...], list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda sample: sample.sha256):
        by_class[sample.labels].append(sample)
    turns = [(n, sample) for group in by_class.values() for n, sample in enumerate(group)]
    return [sample for _, sample in sorted(turns, key=lambda turn: turn[0])[:most]]


def _of_class(data: Dataset, samples: Sequence[Sample], label: str | None) -> list[Sample]:
    if label is None:
        return list(samples)
    if label not in data.classes:
        raise UnknownChoice("class", label, data.classes)
    index = data.classes.index(label)
    return [sample for sample in samples if index in sample.labels]


def _collect(
    explainer: Explainer, samples: Sequence[Sample], block: str, progress: Progress
) -> tuple[Tensor, Tensor]:
    """Return the block's maps (N, C, rows, cols) and the gradients of the predicted classes' logits."""
    model, features, gradients = explainer.model, [], []
    for start in range(0, len(samples), _BATCH):
        part = samples[start : start + _BATCH]
        x = model.geometry.prepare_files(sample.path for sample in part)
        forward = run_forward(model, x, block=block, backend=explainer.backend)
        targets = [make_target(model.classes, int(index)) for index in forward.logits.argmax(1)]
        gradients.append(to_host(forward.gradient(targets)))
        features.append(to_host(forward.map.detach()))
        progress("reading features", start + len(part), len(samples))
    return torch.cat(features), torch.cat(gradients)


def _concept_set(
    explainer: Explainer, fitted: FittedDirections, block: str, method: str, features: Tensor,
    gradients: Tensor,
) -> ConceptSet:  # fmt: skip
    """Return the directions as a set, in the order of their shares of the logits, with their levels."""
    count = len(fitted.directions)
    concepts = ConceptSet(
        block=block, method=method,
        digest=explainer.provenance.digest if explainer.provenance is not None else "",
        mean=fitted.mean, directions=fitted.directions, encoder=fitted.encoder, gram=fitted.gram,
        bias=fitted.bias, active=fitted.active, levels=torch.ones(count, dtype=torch.float64),
        names=("",) * count,
    )  # fmt: skip
    codes = concepts.encode(features)
    along = torch.einsum("nchw,kc->nkhw", gradients.double(), concepts.directions)
    shares = (codes * along).sum((2, 3)).abs().mean(0)
    order = shares.argsort(descending=True, stable=True)
    largest = codes.amax((2, 3)).topk(max(1, len(codes) // _TENTH), dim=0).values.mean(0)
    return replace(
        concepts,
        directions=concepts.directions[order],
        encoder=concepts.encoder[order],
        gram=None if concepts.gram is None else concepts.gram[order][:, order],
        bias=None if concepts.bias is None else concepts.bias[order],
        levels=(_LEVEL * largest.clamp(min=1e-12))[order],
    )


def _explain(
    explainer: Explainer, sample: Sample, concepts: ConceptSet, progress: Progress, n: int, total: int
) -> ConceptExplanation:
    x = explainer.prepare(read_image(sample.path)).x
    forward = run_forward(explainer.model, x[None], block=concepts.block, backend=explainer.backend)
    target = make_target(explainer.model.classes, int(forward.logits[0].argmax()))
    result = explain_by_concepts(explainer.backend, x, target, concepts)
    progress("sharing predictions out", n + 1, total)
    return result


def _measure(number: int, explained: Sequence[ConceptExplanation]) -> ConceptMeasure:
    rows = [
        (item, share)
        for item in explained
        for share in item.shares
        if share.number == number and share.present
    ]
    by_class: dict[str, list[float]] = defaultdict(list)
    for item, share in rows:
        by_class[item.target.label].append(share.share)
    return ConceptMeasure(
        number=number,
        present=len(rows),
        share=_mean([share.share for _, share in rows]),
        flips=sum(share.label_without != item.label for item, share in rows),
        loss=_mean([item.score - share.score_without for item, share in rows]),
        by_class={label: _mean(values) for label, values in sorted(by_class.items())},
    )


def _described(explained: Sequence[ConceptExplanation]) -> float:
    """Return the share of all rises that the concepts' shares add up to."""
    rise = sum(item.logit - item.base for item in explained)
    shared = sum(share.share for item in explained for share in item.shares)
    return shared / rise if rise else 0.0


def _largest(values: Tensor, count: int) -> list[int]:
    order: list[int] = values.argsort(descending=True, stable=True)[:count].tolist()
    return [n for n in order if float(values[n]) > 0]


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0
