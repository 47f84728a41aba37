"""What training minimises, for one class of many, one of two, or any number of labels at once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from models.devices import to_device
from models.networks.scoring import Task
from pipelines.config.schema import PhaseConfig

_MOST_WEIGHT = 100.0
"""A label with hardly any example would otherwise be all that the loss sees."""


class Objective:
    """The loss of a task; targets are (N, classes) with 1 where a class holds.

    Multiclass and binary: cross-entropy over the classes. Multilabel: the mean of each label's binary
    cross-entropy.
    """

    def __init__(self, task: Task, *, class_weights: Tensor | None = None) -> None:
        self.several, self.weights = task == "multilabel", class_weights

    def loss(self, logits: Tensor, targets: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Return the mean over the batch in nats; ``smoothing`` is the share of a target spread over the
        other classes.
        """
        logits = logits.float()
        targets = to_device(targets, logits.device)
        weights = None if self.weights is None else to_device(self.weights, logits.device)
        if self.several:
            soft = targets * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(logits, soft, pos_weight=weights)
        return F.cross_entropy(logits, targets, weight=weights, label_smoothing=smoothing)

    def correctness(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return (N,) share of right answers of each image: 0 or 1, or the share of the labels judged
        rightly.
        """
        if self.several:
            return ((logits > 0) == (targets > 0.5)).float().mean(1)
        return (logits.argmax(1) == targets.argmax(1)).float()


def balanced_weights(task: Task, targets: Tensor) -> Tensor:
    """Return weights (classes,) that let each class count alike: images / (classes x images of the
    class).

    Multilabel: of a label's positives, the negatives for each positive.
    """
    counts = targets.sum(0).clamp(min=1.0)
    if task == "multilabel":
        return ((len(targets) - counts) / counts).clamp(1 / _MOST_WEIGHT, _MOST_WEIGHT)
    return (len(targets) / (targets.shape[1] * counts)).clamp(max=_MOST_WEIGHT)


def make_objective(task: Task, class_weights: str, targets: Tensor) -> Objective:
    """Return the objective of a config: plain, or with ``class_weights`` "balanced" over the training
    targets.
    """
    weights = balanced_weights(task, targets) if class_weights == "balanced" else None
    return Objective(task, class_weights=weights)


class BatchMixer:
    """A mixer of the frozen blocks' outputs by mixup and CutMix (manifold mixup; Verma et al. 2019).

    Mixing there rather than in the images is what lets the features be cached. With both on, each batch is
    mixed by one of them at random.
    """

    def __init__(self, phase: PhaseConfig, classes: int) -> None:
        ways: list[torch.nn.Module] = []
        if phase.mixup:
            ways.append(v2.MixUp(alpha=phase.mixup, num_classes=classes))
        if phase.cutmix:
            ways.append(v2.CutMix(alpha=phase.cutmix, num_classes=classes))
        self._mix = v2.RandomChoice(ways) if ways else None

    def __call__(self, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, …) and targets (N, classes), mixed with those of the batch's neighbours."""
        if self._mix is None or len(x) < 2:
            return x, targets
        maps = x if x.ndim == 4 else x.reshape(*x.shape, *(1,) * (4 - x.ndim))
        mixed, soft = self._mix(maps, targets)
        return mixed.reshape(x.shape), soft
