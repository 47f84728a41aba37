"""What a model gets right and wrong on a split, from the same preparation as in service, and how far its
scores can be believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor
from torchmetrics.functional import classification as tm

from models import images
from models.predictions import Prediction, rank
from models.scoring import ACCEPTED_FROM, Scoring
from models.transfer import TransferModel
from pipelines.data import Sample

BINS = 10
"""Of the reliability diagram and the expected calibration error."""
_TEMPERATURES = (0.2, 10.0)
_KEPT = 5
_PRIOR_WIDTH = 0.35
"""Of the logarithm of the temperature: what a model is trusted before any picture is seen."""
_THRESHOLD = ACCEPTED_FROM - 1e-9
"""torchmetrics accepts above a threshold, the service from it."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One picture with its truth and the model's answer."""

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
    def right(self) -> bool:
        """Whether exactly the true classes are answered."""
        return {item.index for item in self.ranking if item.accepted} == set(self.sample.labels)

    @property
    def said(self) -> Prediction:
        """The answer to look at: the surest false one, or else the highest score."""
        false = [item for item in self.ranking if item.accepted and item.index not in self.sample.labels]
        return (false or [self.top])[0]

    @property
    def true(self) -> Prediction:
        """The true class to look at: the one with the lowest score of those; where none holds, the answer."""
        holding = [item for item in self.ranking if item.index in self.sample.labels]
        return (holding or [self.said])[-1]

    @property
    def truth_score(self) -> float:
        """The score of the true class."""
        return self.true.score

    @property
    def error(self) -> float:
        """How bad a mistake is, 0 to 1: the score of the surest false answer, or what the missed class
        lacks. Of a right answer, how far it is from being sure.
        """
        if not self.right:
            false = self.said.index not in self.sample.labels
            return self.said.score if false else 1 - self.true.score
        return max(abs((item.index in self.sample.labels) - item.score) for item in self.ranking)

    def _by_index(self) -> list[Prediction]:
        return sorted(self.ranking, key=lambda item: item.index)


@dataclass(frozen=True, slots=True)
class ClassRow:
    """How one class fares; 0 where nothing was answered or nothing is true."""

    label: str
    pictures: int
    precision: float
    recall: float
    f1: float
    auroc: float


@dataclass(frozen=True, slots=True)
class Bin:
    """One bar of a reliability diagram: answers with a score in [low, high)."""

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
    judged: list[Judged]
    confusion: Tensor = field(repr=False)
    """Counts (classes, classes): row is the truth, column the prediction; for several labels, (classes, 2, 2)
    with [[true negatives, false positives], [false negatives, true positives]]."""
    metrics: dict[str, float]
    """accuracy, balanced_accuracy, macro_f1, auroc, loss (nats), ece and their like, by the task."""
    table: list[ClassRow] = field(repr=False)
    reliability: list[Bin] = field(repr=False)
    logits: Tensor = field(repr=False)
    """(N, classes)."""
    pooled: Tensor = field(repr=False)
    """What the head sees of each picture, (N, features)."""

    @property
    def wrong(self) -> list[Judged]:
        """The mistakes, the worst first."""
        return sorted((item for item in self.judged if not item.right), key=lambda item: -item.error)

    @property
    def least_sure(self) -> list[Judged]:
        """The right answers, the closest call first."""
        return sorted((item for item in self.judged if item.right), key=lambda item: -item.error)


def evaluate(
    model: TransferModel, samples: Sequence[Sample], split: str, *, batch_size: int = 32,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:  # fmt: skip
    """Judge every sample with the model in eval mode, scored as its bundle scores."""
    pooled = embed(model, samples, batch_size=batch_size, report=report)
    with torch.no_grad():
        logits = torch.cat([model.classify(part) for part in torch.split(pooled, batch_size)])
    return judge(model.classes, model.scoring, samples, split, logits, pooled)


def embed(
    model: TransferModel, samples: Sequence[Sample], *, batch_size: int = 32,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Tensor:  # fmt: skip
    """What the head sees of each picture: the pooled output of the last block, (N, …)."""
    model.eval()
    parts: list[Tensor] = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        x = torch.stack([model.geometry.prepare(images.read(sample.path))[0] for sample in part])
        parts.append(model.raise_to(x, len(model.block_names)))
        report(start + len(part), len(samples))
    return torch.cat(parts)


def judge(
    classes: list[str],
    scoring: Scoring,
    samples: Sequence[Sample],
    split: str,
    logits: Tensor,
    pooled: Tensor,
) -> Evaluation:
    """An evaluation from logits (N, classes) that are there already."""
    judged = []
    for sample, row in zip(samples, logits, strict=True):
        named = " + ".join(classes[label] for label in sample.labels) or "none"
        judged.append(Judged(sample, named, _worth_keeping(rank(row, classes, scoring), sample)))
    truth = torch.zeros(len(samples), len(classes), dtype=torch.long)
    for row, sample in zip(truth, samples, strict=True):
        row[list(sample.labels)] = 1
    scores = scoring.scores(logits).float()
    several = scoring.task == "multilabel"
    parts = _multilabel(scores, truth) if several else _single(scores, truth.argmax(1), scoring)
    metrics, confusion, precision, recall, f1, auroc = parts
    metrics["loss"] = float(_nll(logits, truth, scoring))
    table = [
        ClassRow(label, int(truth[:, i].sum()), *(float(each[i]) for each in (precision, recall, f1, auroc)))
        for i, label in enumerate(classes)
    ]
    bins = reliability(scores, truth, several=several)
    return Evaluation(
        split=split, classes=classes, judged=judged, confusion=confusion, metrics=metrics, table=table,
        reliability=bins, logits=logits, pooled=pooled.flatten(1),
    )  # fmt: skip


def _worth_keeping(ranking: list[Prediction], sample: Sample) -> tuple[Prediction, ...]:
    return tuple(
        item
        for place, item in enumerate(ranking)
        if place < _KEPT or item.accepted or item.index in sample.labels
    )


def fit_temperature(evaluation: Evaluation, scoring: Scoring) -> float:
    """The most probable temperature on a judged split: the lowest loss over its pictures (Guo et al.
    2017), held near 1 by a normal prior on its logarithm, within 0.2 to 10.

    Without the prior a small split that the model happens to get right asks for ever surer scores.
    """
    truth = torch.zeros(evaluation.logits.shape, dtype=torch.long)
    for row, item in zip(truth, evaluation.judged, strict=True):
        row[list(item.sample.labels)] = 1

    def loss(log_temperature: float) -> float:
        nll = float(_nll(evaluation.logits, truth, Scoring(scoring.task, math.exp(log_temperature))))
        return nll * len(truth) + (log_temperature / _PRIOR_WIDTH) ** 2 / 2

    bounds = tuple(math.log(each) for each in _TEMPERATURES)
    found = minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-4})
    return float(math.exp(found.x))


def reliability(scores: Tensor, truth: Tensor, *, several: bool) -> list[Bin]:
    """Answers binned by their score: each picture's highest score, or every label's own."""
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
        bins.append(Bin(number / BINS, (number + 1) / BINS, count, *mean))
    return bins


_Parts = tuple[dict[str, float], Tensor, Tensor, Tensor, Tensor, Tensor]


def _single(scores: Tensor, truth: Tensor, scoring: Scoring) -> _Parts:
    count = scores.shape[1]
    metrics = {
        "accuracy": tm.multiclass_accuracy(scores, truth, average="micro", num_classes=count),
        "balanced_accuracy": tm.multiclass_accuracy(scores, truth, average="macro", num_classes=count),
        "macro_f1": tm.multiclass_f1_score(scores, truth, average="macro", num_classes=count),
        "auroc": tm.multiclass_auroc(scores, truth, average="macro", num_classes=count),
        "ece": tm.multiclass_calibration_error(scores, truth, n_bins=BINS, norm="l1", num_classes=count),
    }
    if scoring.task == "binary":
        positive, holds = scores[:, 1], truth
        metrics |= {
            "precision": tm.binary_precision(positive, holds, threshold=_THRESHOLD),
            "recall": tm.binary_recall(positive, holds, threshold=_THRESHOLD),
            "specificity": tm.binary_specificity(positive, holds, threshold=_THRESHOLD),
            "average_precision": tm.binary_average_precision(positive, holds),
        }
    return (
        {name: float(value) for name, value in metrics.items()},
        tm.multiclass_confusion_matrix(scores, truth, num_classes=count),
        tm.multiclass_precision(scores, truth, average="none", num_classes=count),
        tm.multiclass_recall(scores, truth, average="none", num_classes=count),
        tm.multiclass_f1_score(scores, truth, average="none", num_classes=count),
        tm.multiclass_auroc(scores, truth, average="none", num_classes=count),
    )


def _multilabel(scores: Tensor, truth: Tensor) -> _Parts:
    count = scores.shape[1]
    recall = tm.multilabel_recall(scores, truth, average="none", num_labels=count, threshold=_THRESHOLD)
    specificity = tm.multilabel_specificity(
        scores, truth, average="none", num_labels=count, threshold=_THRESHOLD
    )
    metrics = {
        "accuracy": tm.multilabel_accuracy(
            scores, truth, average="micro", num_labels=count, threshold=_THRESHOLD
        ),
        "exact_match": tm.multilabel_exact_match(scores, truth, num_labels=count, threshold=_THRESHOLD),
        "balanced_accuracy": ((recall + specificity) / 2).mean(),
        "macro_f1": tm.multilabel_f1_score(
            scores, truth, average="macro", num_labels=count, threshold=_THRESHOLD
        ),
        "auroc": tm.multilabel_auroc(scores, truth, average="macro", num_labels=count),
        "mean_average_precision": tm.multilabel_average_precision(
            scores, truth, average="macro", num_labels=count
        ),
        "ece": _label_ece(reliability(scores, truth, several=True)),
    }
    return (
        {name: float(value) for name, value in metrics.items()},
        tm.multilabel_confusion_matrix(scores, truth, num_labels=count, threshold=_THRESHOLD),
        tm.multilabel_precision(scores, truth, average="none", num_labels=count, threshold=_THRESHOLD),
        recall,
        tm.multilabel_f1_score(scores, truth, average="none", num_labels=count, threshold=_THRESHOLD),
        tm.multilabel_auroc(scores, truth, average="none", num_labels=count),
    )


def _label_ece(bins: list[Bin]) -> Tensor:
    """Mean distance of score and truth over all label decisions; torchmetrics has it for one answer only."""
    total = sum(each.answers for each in bins)
    return torch.tensor(sum(each.answers / total * abs(each.confidence - each.accuracy) for each in bins))


def _nll(logits: Tensor, truth: Tensor, scoring: Scoring) -> Tensor:
    """Mean negative log-likelihood, nats; over the labels too where several can hold."""
    calibrated, wanted = logits.double() / scoring.temperature, truth.double()
    if scoring.task == "multilabel":
        return torch.nn.functional.binary_cross_entropy_with_logits(calibrated, wanted)
    return torch.nn.functional.cross_entropy(calibrated, wanted)
