"""What a model gets right and wrong on a split, from the same preparation as in service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_confusion_matrix,
    multiclass_f1_score,
)

from models import images
from models.predictions import Prediction, rank
from models.transfer import TransferModel
from pipelines.data import Sample


@dataclass(frozen=True, slots=True)
class Judged:
    """One picture with its truth and the model's answer."""

    sample: Sample
    truth: str
    ranking: tuple[Prediction, ...]

    @property
    def top(self) -> Prediction:
        """The highest score."""
        return self.ranking[0]

    @property
    def right(self) -> bool:
        """Whether the highest score is the truth's."""
        return self.top.index == self.sample.label

    @property
    def truth_score(self) -> float:
        """The score of the true class."""
        return next(item.score for item in self.ranking if item.index == self.sample.label)


@dataclass(frozen=True)
class Evaluation:
    """A judged split."""

    split: str
    classes: list[str]
    judged: list[Judged]
    confusion: Tensor = field(repr=False)
    """Counts (classes, classes): row is the truth, column the prediction."""
    metrics: dict[str, float]
    """accuracy, balanced_accuracy, macro_f1, loss (cross-entropy, nats)."""

    @property
    def wrong(self) -> list[Judged]:
        """The mistakes, the surest first."""
        return sorted((item for item in self.judged if not item.right), key=lambda item: -item.top.score)

    @property
    def least_sure(self) -> list[Judged]:
        """The right answers, the closest call first."""
        return sorted((item for item in self.judged if item.right), key=lambda item: item.top.score)


def evaluate(
    model: TransferModel, samples: Sequence[Sample], split: str, *, batch_size: int = 32,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Evaluation:  # fmt: skip
    """Judge every sample with the model in eval mode."""
    model.eval()
    parts: list[Tensor] = []
    for start in range(0, len(samples), batch_size):
        part = samples[start : start + batch_size]
        x = torch.stack([model.geometry.prepare(images.read(sample.path))[0] for sample in part])
        with torch.no_grad():
            parts.append(model(x))
        report(start + len(part), len(samples))
    logits = torch.cat(parts)
    truth = torch.tensor([sample.label for sample in samples])
    count = len(model.classes)
    judged = [
        Judged(sample=sample, truth=model.classes[sample.label], ranking=tuple(rank(row, model.classes)))
        for sample, row in zip(samples, logits, strict=True)
    ]
    metrics = {
        "accuracy": float(multiclass_accuracy(logits, truth, num_classes=count, average="micro")),
        "balanced_accuracy": float(multiclass_accuracy(logits, truth, num_classes=count, average="macro")),
        "macro_f1": float(multiclass_f1_score(logits, truth, num_classes=count, average="macro")),
        "loss": float(torch.nn.functional.cross_entropy(logits, truth)),
    }
    confusion = multiclass_confusion_matrix(logits, truth, num_classes=count)
    return Evaluation(split=split, classes=model.classes, judged=judged, confusion=confusion, metrics=metrics)
