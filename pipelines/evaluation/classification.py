"""What a model gets right and wrong on a split, from the same preparation as in service, and how far its
scores can be believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.devices import to_host
from models.networks.predictions import Prediction, rank_classes
from models.networks.scoring import ACCEPTED_FROM, Scoring
from models.networks.transfer_model import TransferModel, pool_to_vectors
from models.progress import Progress, no_progress
from pipelines.data.dataset import Sample

BINS = 10
"""Of the reliability diagram and the expected calibration error."""
_TEMPERATURES = (0.2, 10.0)
_TOP_K, _CONFIDENT = 5, 0.8
_PRIOR_WIDTH = 0.35
"""Of the logarithm of the temperature: what a model is trusted before any image is seen."""
_THRESHOLD = ACCEPTED_FROM - 1e-9
"""torchmetrics accepts above a threshold, the service from it."""


@dataclass(frozen=True, slots=True)
class EvaluatedSample:
    """An image with its target and the model's prediction."""

    sample: Sample
    truth: str
    """The true class, or the true labels with + between, or "none"."""
    ranking: tuple[Prediction, ...]
    """Highest first: the first five, and every class that is true or answered. Of a thousand classes the rest
    would only fill memory."""

    @property
    def top(self) -> Prediction:
        """The highest score."""
        return self.ranking[0]

    @property
    def answer(self) -> str:
        """What the model answers, written as the truth is."""
        return " + ".join(item.label for item in self._by_index() if item.accepted) or "none"

    @property
    def is_correct(self) -> bool:
        """Whether exactly the true classes are answered."""
        return {item.index for item in self.ranking if item.accepted} == set(self.sample.labels)

    @property
    def predicted(self) -> Prediction:
        """The answer to look at: the surest false one, or else the highest score."""
        return (self._false() or [self.top])[0]

    @property
    def is_confident_mistake(self) -> bool:
        """Whether it is a mistake made with a score of 0.8 or more: a false answer so high, or a miss so
        low.
        """
        return not self.is_correct and self.error >= _CONFIDENT

    @property
    def target(self) -> Prediction:
        """The true class to look at: the one with the lowest score of those; where none holds, the answer."""
        holding = [item for item in self.ranking if item.index in self.sample.labels]
        return (holding or [self.predicted])[-1]

    @property
    def truth_score(self) -> float:
        """The score of the true class."""
        return self.target.score

    @property
    def error(self) -> float:
        """How bad a mistake is, 0 to 1: the score of the surest false answer, or what the missed class
        lacks. Of a right answer, how far it is from being sure.
        """
        if not self.is_correct:
            return self._false()[0].score if self._false() else 1 - self.target.score
        return max(abs((item.index in self.sample.labels) - item.score) for item in self.ranking)

    def _false(self) -> list[Prediction]:
        return [item for item in self.ranking if item.accepted and item.index not in self.sample.labels]

    def _by_index(self) -> list[Prediction]:
        return sorted(self.ranking, key=lambda item: item.index)


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Metrics of one class; None for a figure that is undefined: of a class that no image of the split shows,
    or that all of them do.
    """

    label: str
    pictures: int
    precision: float | None
    recall: float | None
    f1: float | None
    auroc: float | None


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """A bar of a reliability diagram: answers with a score in [low, high)."""

    low: float
    high: float
    answers: int
    confidence: float
    """Mean score."""
    accuracy: float
    """Share that was right."""


@dataclass(frozen=True)
class Evaluation:
    """A judged split."""

    split: str
    classes: list[str]
    samples: list[EvaluatedSample]
    confusion: Tensor = field(repr=False)
    """Counts (classes, classes): row is the truth, column the prediction; for several labels, (classes, 2, 2)
    with [[true negatives, false positives], [false negatives, true positives]]."""
    metrics: dict[str, float]
    """accuracy, balanced_accuracy, macro_f1, auroc, loss (nats), ece and their like, by the task."""
    table: list[ClassMetrics] = field(repr=False)
    reliability: list[ReliabilityBin] = field(repr=False)
    logits: Tensor = field(repr=False)
    """(N, classes)."""

    @property
    def wrong(self) -> list[EvaluatedSample]:
        """The mistakes, the worst first."""
        return sorted((item for item in self.samples if not item.is_correct), key=lambda item: -item.error)

    @property
    def least_sure(self) -> list[EvaluatedSample]:
        """The right answers, the closest call first."""
        return sorted((item for item in self.samples if item.is_correct), key=lambda item: -item.error)


def evaluate(
    model: TransferModel, samples: Sequence[Sample], split: str, *, batch_size: int = 32,
    progress: Progress = no_progress,
) -> Evaluation:  # fmt: skip
    """Judge every sample with the model in eval mode, scored as its bundle scores."""
    parts = []
    with torch.no_grad():
        for pooled in _pooled(model, samples, batch_size, progress, "evaluating"):
            parts.append(model.classify(pooled))
    return evaluate_logits(model.classes, model.scoring, samples, split, to_host(torch.cat(parts)))


def embed_samples(
    model: TransferModel, samples: Sequence[Sample], *, batch_size: int = 32,
    progress: Progress = no_progress,
) -> Tensor:  # fmt: skip
    """Return each image as the vector that the head sees of it, (N, features)."""
    pooled = _pooled(model, samples, batch_size, progress, "embedding")
    return torch.cat([to_host(pool_to_vectors(batch)) for batch in pooled])


def _pooled(
    model: TransferModel, samples: Sequence[Sample], batch_size: int, progress: Progress, what: str
) -> Iterator[Tensor]:
    """Yield the pooled output of the last block, a batch at a time."""
    model.eval()
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        x = model.geometry.prepare_files(sample.path for sample in part)
        yield model.raise_to(x, len(model.block_names))
        progress(what, start + len(part), len(samples))


def evaluate_logits(
    classes: list[str], scoring: Scoring, samples: Sequence[Sample], split: str, logits: Tensor
) -> Evaluation:
    """Evaluate logits (N, classes) that are there already."""
    evaluated = []
    for sample, row in zip(samples, logits, strict=True):
        named = " + ".join(classes[label] for label in sample.labels) or "none"
        evaluated.append(
            EvaluatedSample(sample, named, _worth_keeping(rank_classes(row, classes, scoring), sample))
        )
    truth = torch.zeros(len(samples), len(classes), dtype=torch.long)
    for row, sample in zip(truth, samples, strict=True):
        row[list(sample.labels)] = 1
    scores = scoring.scores(logits).float()
    several = scoring.task == "multilabel"
    figures = _multilabel(scores, truth) if several else _single(scores, truth.argmax(1), scoring)
    table = [
        _class_metrics(
            label, int(truth[:, i].sum()), len(samples), [float(figure[i]) for figure in figures.by_class]
        )
        for i, label in enumerate(classes)
    ]
    return Evaluation(
        split=split,
        classes=classes,
        samples=evaluated,
        confusion=figures.confusion,
        metrics={**figures.metrics, "loss": float(_nll(logits, truth, scoring))},
        table=table,
        reliability=reliability(scores, truth, several=several),
        logits=logits,
    )


def _class_metrics(label: str, images: int, of: int, figures: list[float]) -> ClassMetrics:
    precision, recall, f1, auroc = figures
    present = images > 0
    return ClassMetrics(
        label=label,
        pictures=images,
        precision=precision if present else None,
        recall=recall if present else None,
        f1=f1 if present else None,
        auroc=auroc if 0 < images < of else None,
    )


def _worth_keeping(ranking: list[Prediction], sample: Sample) -> tuple[Prediction, ...]:
    return tuple(
        item
        for place, item in enumerate(ranking)
        if place < _TOP_K or item.accepted or item.index in sample.labels
    )


def fit_temperature(evaluation: Evaluation, scoring: Scoring) -> float:
    """Return the most probable temperature on a judged split: the lowest loss over its images (Guo et al.
    2017), held near 1 by a normal prior on its logarithm, within 0.2 to 10.

    Without the prior a small split that the model happens to get right asks for ever surer scores.
    """
    truth = torch.zeros(evaluation.logits.shape, dtype=torch.long)
    for row, item in zip(truth, evaluation.samples, strict=True):
        row[list(item.sample.labels)] = 1

    decisions = truth.numel() if scoring.task == "multilabel" else len(truth)

    def loss(log_temperature: float) -> float:
        nll = float(_nll(evaluation.logits, truth, Scoring(scoring.task, math.exp(log_temperature))))
        return nll * decisions + (log_temperature / _PRIOR_WIDTH) ** 2 / 2

    bounds = tuple(math.log(temperature) for temperature in _TEMPERATURES)
    from scipy.optimize import minimize_scalar

    minimum = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(math.exp(minimum.x))


def reliability(scores: Tensor, truth: Tensor, *, several: bool) -> list[ReliabilityBin]:
    """Bin answers by their score: each image's highest score, or every label's own."""
    if several:
        confidence, right = scores.flatten(), truth.flatten().bool()
    else:
        confidence, answer = scores.max(1)
        right = answer == truth.argmax(1)
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = []
    for number in range(BINS):
        here = place == number
        count = int(here.sum())
        mean = (float(confidence[here].mean()), float(right[here].float().mean())) if count else (0.0, 0.0)
        bins.append(ReliabilityBin(number / BINS, (number + 1) / BINS, count, *mean))
    return bins


@dataclass(frozen=True, slots=True)
class _Figures:
    """The metrics of one split as torchmetrics computes them."""

    metrics: dict[str, float]
    confusion: Tensor
    by_class: tuple[Tensor, Tensor, Tensor, Tensor]
    """Precision, recall, F1 and AUROC of each class."""


def _mean_over(values: Tensor, counted: Tensor) -> Tensor:
    """Average over the classes that can be counted: one that no image shows, or all do, is no evidence either
    way.
    """
    return values[counted].mean() if bool(counted.any()) else torch.tensor(float("nan"))


def _single(scores: Tensor, truth: Tensor, scoring: Scoring) -> _Figures:
    # Its import takes a second, which commands that measure nothing need not wait for.
    from torchmetrics.functional import classification as tm

    count = scores.shape[1]
    image_counts = torch.bincount(truth, minlength=count)
    recall = tm.multiclass_recall(scores, truth, average="none", num_classes=count)
    auroc = tm.multiclass_auroc(scores, truth, average="none", num_classes=count)
    metrics = {
        "accuracy": tm.multiclass_accuracy(scores, truth, average="micro", num_classes=count),
        "balanced_accuracy": _mean_over(recall, image_counts > 0),
        "macro_f1": tm.multiclass_f1_score(scores, truth, average="macro", num_classes=count),
        "auroc": _mean_over(auroc, (image_counts > 0) & (image_counts < len(truth))),
        "ece": tm.multiclass_calibration_error(scores, truth, n_bins=BINS, norm="l1", num_classes=count),
    }
    if scoring.task == "binary":
        positive = scores[:, 1]
        metrics |= {
            "precision": tm.binary_precision(positive, truth, threshold=_THRESHOLD),
            "recall": tm.binary_recall(positive, truth, threshold=_THRESHOLD),
            "specificity": tm.binary_specificity(positive, truth, threshold=_THRESHOLD),
            "average_precision": tm.binary_average_precision(positive, truth),
        }
    precision = tm.multiclass_precision(scores, truth, average="none", num_classes=count)
    f1 = tm.multiclass_f1_score(scores, truth, average="none", num_classes=count)
    confusion = tm.multiclass_confusion_matrix(scores, truth, num_classes=count)
    return _Figures(_finite(metrics), confusion, (precision, recall, f1, auroc))


def _multilabel(scores: Tensor, truth: Tensor) -> _Figures:
    from torchmetrics.functional import classification as tm

    count = scores.shape[1]
    image_counts = truth.sum(0)
    mixed = (image_counts > 0) & (image_counts < len(truth))
    recall = tm.multilabel_recall(scores, truth, average="none", num_labels=count, threshold=_THRESHOLD)
    specificity = tm.multilabel_specificity(
        scores, truth, average="none", num_labels=count, threshold=_THRESHOLD
    )
    f1 = tm.multilabel_f1_score(scores, truth, average="none", num_labels=count, threshold=_THRESHOLD)
    auroc = tm.multilabel_auroc(scores, truth, average="none", num_labels=count)
    average_precision = tm.multilabel_average_precision(scores, truth, average="none", num_labels=count)
    metrics = {
        "accuracy": tm.multilabel_accuracy(
            scores, truth, average="micro", num_labels=count, threshold=_THRESHOLD
        ),
        "exact_match": tm.multilabel_exact_match(scores, truth, num_labels=count, threshold=_THRESHOLD),
        "balanced_accuracy": _mean_over((recall + specificity) / 2, mixed),
        "macro_f1": _mean_over(f1, image_counts > 0),
        "auroc": _mean_over(auroc, mixed),
        "mean_average_precision": _mean_over(average_precision, image_counts > 0),
        "ece": _label_ece(reliability(scores, truth, several=True)),
    }
    precision = tm.multilabel_precision(scores, truth, average="none", num_labels=count, threshold=_THRESHOLD)
    confusion = tm.multilabel_confusion_matrix(scores, truth, num_labels=count, threshold=_THRESHOLD)
    return _Figures(_finite(metrics), confusion, (precision, recall, f1, auroc))


def _finite(metrics: dict[str, Tensor]) -> dict[str, float]:
    """Leave out the values that are undefined for this split."""
    return {name: float(value) for name, value in metrics.items() if math.isfinite(float(value))}


def _label_ece(bins: list[ReliabilityBin]) -> Tensor:
    """Return the mean distance of score and target over all label decisions; torchmetrics has it for one
    answer only.
    """
    total = sum(reliability_bin.answers for reliability_bin in bins)
    return torch.tensor(
        sum(
            reliability_bin.answers / total * abs(reliability_bin.confidence - reliability_bin.accuracy)
            for reliability_bin in bins
        )
    )


def _nll(logits: Tensor, truth: Tensor, scoring: Scoring) -> Tensor:
    """Return the mean negative log-likelihood in nats; over the labels too where several can hold."""
    calibrated, targets = logits.double() / scoring.temperature, truth.double()
    if scoring.task == "multilabel":
        return torch.nn.functional.binary_cross_entropy_with_logits(calibrated, targets)
    return torch.nn.functional.cross_entropy(calibrated, targets)
