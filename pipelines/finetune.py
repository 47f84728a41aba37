"""Fine-tuning in phases: first the head on a frozen backbone, then the top blocks unfrozen. Speaks to no
platform.

A phase's frozen prefix never changes, so its outputs for a few augmented views of each picture are computed
once and every epoch trains on those: an epoch of the head costs a thousandth of one through the whole
network.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

from models import images
from models.errors import TrainingError
from models.geometry import Geometry
from models.transfer import HEAD, TransferModel
from pipelines.config import Augmentation, PhaseConfig, TrainConfig
from pipelines.data import Dataset, Sample


@dataclass(frozen=True, slots=True)
class Epoch:
    """What one epoch came to."""

    phase: str
    number: int
    """From 1; 0 is the state that the phase began with."""
    of: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    rates: dict[str, float]
    """Learning rate of each part, from the lowest trained block to the head, at the end of the epoch."""
    best: bool


@dataclass
class PhaseResult:
    """A finished phase; the model holds its best state."""

    phase: PhaseConfig
    trained_blocks: list[str]
    cached_views: int
    """0 when the set was too large for the cache."""
    epochs: list[Epoch] = field(default_factory=list)

    @property
    def best(self) -> Epoch:
        """The epoch whose state was kept."""
        return [epoch for epoch in self.epochs if epoch.best][-1]


@dataclass(frozen=True, slots=True)
class Reporter:
    """Where news of the work goes; the defaults keep silent."""

    epoch: Callable[[Epoch], None] = lambda epoch: None
    step: Callable[[str, int, int], None] = lambda what, done, total: None
    """(what is being done, done, total), often."""


class Augmenter:
    """Varied views of a picture as the geometry's tensors; the same (seed, picture, view) is always the
    same view.
    """

    def __init__(self, geometry: Geometry, policy: Augmentation, *, seed: int) -> None:
        self.geometry, self.policy, self.seed = geometry, policy, seed
        mode = (
            InterpolationMode.BICUBIC if geometry.interpolation == "bicubic" else InterpolationMode.BILINEAR
        )
        fill = [round(channel * 255) for channel in geometry.mean]
        size = (geometry.crop_height, geometry.crop_width)
        steps: list[torch.nn.Module] = []
        if policy.rotate_degrees:
            rotation = v2.RandomRotation(
                [-policy.rotate_degrees, policy.rotate_degrees], InterpolationMode.BILINEAR
            )
            rotation.fill, rotation._fill = fill, {PIL.Image.Image: fill}
            steps.append(rotation)
        steps.append(v2.RandomResizedCrop(size, scale=(policy.min_crop_area, 1.0), interpolation=mode))
        if policy.flip:
            steps.append(v2.RandomHorizontalFlip())
        if policy.colour:
            steps.append(v2.ColorJitter(policy.colour, policy.colour, policy.colour))
        self._transform = v2.Compose(steps)

    def picture(self, sample: Sample, view: int) -> PIL.Image.Image:
        """View 0 is the picture as the model will see it in service; the others are varied."""
        image = images.read(sample.path)
        if view == 0:
            return self.geometry.see(image)[0]
        digest = hashlib.sha256(f"{self.seed}/{sample.sha256}/{view}".encode()).digest()
        # torchvision draws from torch's global generator: seeded for each view, and put back as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest[:8], "big", signed=True))
            varied: PIL.Image.Image = self._transform(image.pil)
        return varied

    def tensor(self, sample: Sample, view: int) -> Tensor:
        """(3, H, W) float32."""
        return self.geometry.normalise(self.picture(sample, view))


def batches(
    augmenter: Augmenter,
    samples: Sequence[Sample],
    views: Sequence[int],
    batch_size: int,
    *,
    ahead: bool = True,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Tensors (N, 3, H, W) and labels (N,), the next batch being read while the caller works on the last.

    Bounded: at most two batches are in memory beside the caller's. While the caller draws random numbers of
    its own, as in training, ``ahead`` must be off: torch's global generator is one for all threads.
    """

    def read(start: int) -> tuple[Tensor, Tensor]:
        part = range(start, min(start + batch_size, len(samples)))
        stacked = torch.stack([augmenter.tensor(samples[i], views[i]) for i in part])
        return stacked, torch.tensor([samples[i].label for i in part])

    if not ahead:
        yield from (read(start) for start in range(0, len(samples), batch_size))
        return
    with ThreadPoolExecutor(1, thread_name_prefix="read") as reader:
        starts = list(range(0, len(samples), batch_size))
        coming = reader.submit(read, starts[0]) if starts else None
        for following in [*starts[1:], None]:
            if coming is None:
                return
            current = coming.result()
            coming = reader.submit(read, following) if following is not None else None
            yield current


class Features:
    """What the lowest boundary of all phases passes up, computed once: several views of each training
    picture.

    Nothing below that boundary changes in any phase, so every phase trains on these, and a phase that starts
    higher only runs the blocks between. A set too large for the cache's memory gets fewer views, and then
    none: its pictures run through the frozen part again in each epoch.
    """

    def __init__(self, model: TransferModel, data: Dataset, config: TrainConfig, reporter: Reporter) -> None:
        """Run the frozen blocks over every validation picture and every view that fits."""
        self.model, self.samples, self.config = model, data.train, config
        self.augmenter = Augmenter(model.geometry, config.augmentation, seed=config.seed)
        self.labels = torch.tensor([sample.label for sample in data.train])
        self.val_labels = torch.tensor([sample.label for sample in data.val])
        self.boundary = min(_boundary(model, phase) for phase in config.phases)
        self.val = self._run(
            data.val, 0, lambda done: reporter.step("validation features", done, len(data.val))
        )
        bytes_per_view = max(self.val[0].numel() * self.val.element_size() * len(data.train), 1)
        self.views = min(config.views, int(config.cache_gb * 1e9 // bytes_per_view))
        self.train = [self._run_view(data.train, view, reporter) for view in range(self.views)]

    def _run_view(self, samples: Sequence[Sample], view: int, reporter: Reporter) -> Tensor:
        before, total = view * len(samples), self.views * len(samples)
        return self._run(samples, view, lambda done: reporter.step("training features", before + done, total))

    def _run(self, samples: Sequence[Sample], view: int, report: Callable[[int], None]) -> Tensor:
        self.model.eval()
        parts: list[Tensor] = []
        done = 0
        for x, _ in batches(self.augmenter, samples, [view] * len(samples), self.config.batch_size):
            with torch.no_grad():
                parts.append(self.model.run_blocks(x, 0, self.boundary))
            done += len(x)
            report(done)
        return torch.cat(parts)

    def for_phase(self) -> tuple[list[Tensor], Tensor]:
        """(training views, validation) at the model's present boundary; the model must be frozen for its
        phase.
        """

        def raise_up(features: Tensor) -> Tensor:
            return torch.cat(
                [self.model.frozen_prefix(part, skip=self.boundary) for part in torch.split(features, 64)]
            )

        self.model.eval()
        return [raise_up(view) for view in self.train], raise_up(self.val)

    def epoch(self, views: list[Tensor], number: int, order: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Every picture once, in batches, each in a view that changes from epoch to epoch."""
        if not views:
            chosen = [self.samples[i] for i in order]
            for x, labels in batches(
                self.augmenter, chosen, [number] * len(order), self.config.batch_size, ahead=False
            ):
                yield self.model.frozen_prefix(x), labels
            return
        view = (number + np.arange(len(order))) % len(views)
        for start in range(0, len(order), self.config.batch_size):
            part = order[start : start + self.config.batch_size]
            yield torch.stack([views[view[i]][i] for i in part]), self.labels[part]


def run_phase(
    model: TransferModel, features: Features, phase: PhaseConfig, reporter: Reporter, *, seed: int
) -> PhaseResult:
    """Train one phase and leave the model in its best state: the one of the lowest validation loss.

    The loss, not the accuracy: on a small validation set accuracy moves in steps of a picture and favours a
    lucky epoch. The state that the phase began with competes too, so a phase that does not help changes
    nothing.
    Raises TrainingError when the loss is not finite; the model then holds the best state before.
    """
    model.freeze_below(phase.train_from)
    views, val = features.for_phase()
    groups = _groups(model, phase)
    optimiser = torch.optim.AdamW(groups, lr=phase.rate, weight_decay=phase.weight_decay)
    steps = phase.epochs * -(-len(features.samples) // features.config.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _cosine(step, steps))
    result = PhaseResult(phase, [name for name, _ in model.trainable_groups()], len(views))
    keeper = _BestState(model)
    shuffle = np.random.default_rng(seed)

    def measure(number: int, train_loss: float) -> Epoch:
        loss, accuracy = _validate(model, val, features.val_labels)
        if not np.isfinite([loss, train_loss if number else 0.0]).all():
            keeper.restore()
            raise TrainingError(
                f"The loss is not finite (training {train_loss}, validation {loss}) in epoch {number} "
                f"of phase {phase.name!r}; the state before it is kept. Lower the phase's rate."
            )
        rates = {str(group["name"]): float(str(group["lr"])) for group in groups}
        best = keeper.offer(loss)
        return Epoch(phase.name, number, phase.epochs, train_loss, loss, accuracy, rates, best)

    result.epochs.append(measure(0, float("nan")))
    torch.manual_seed(seed)
    for number in range(1, phase.epochs + 1):
        model.train()
        losses: list[float] = []
        for activation, labels in features.epoch(
            views, number - 1, shuffle.permutation(len(features.samples))
        ):
            optimiser.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model.trainable_rest(activation), labels)
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 5.0)
            optimiser.step()
            schedule.step()
            losses.append(float(loss.detach()))
        epoch = measure(number, float(np.mean(losses)))
        result.epochs.append(epoch)
        reporter.epoch(epoch)
    keeper.restore()
    return result


class _BestState:
    """The best state so far, kept as a copy of the trainable part only: the rest cannot change."""

    def __init__(self, model: TransferModel) -> None:
        self.model = model
        self.loss = float("inf")
        self.state: dict[str, Tensor] = {}

    def offer(self, loss: float) -> bool:
        if loss >= self.loss:
            return False
        self.loss = loss
        frozen = {id(p) for p in self.model.parameters() if not p.requires_grad}
        self.state = {
            key: copy.deepcopy(value.detach())
            for key, value in self.model.state_dict(keep_vars=True).items()
            if id(value) not in frozen
        }
        return True

    def restore(self) -> None:
        self.model.load_state_dict(self.state, strict=False)
        self.model.eval()


def _boundary(model: TransferModel, phase: PhaseConfig) -> int:
    """How many blocks lie below what the phase trains."""
    return len(model.block_names) if phase.train_from == HEAD else model.index_of(phase.train_from)


def _groups(model: TransferModel, phase: PhaseConfig) -> list[dict[str, Any]]:
    """Optimiser groups, the rate falling by ``block_decay`` with each block below the head (Howard & Ruder
    2018).
    """
    groups = model.trainable_groups()
    return [
        {"params": params, "lr": phase.rate * phase.block_decay**depth, "name": name}
        for depth, (name, params) in zip(range(len(groups) - 1, -1, -1), groups, strict=True)
    ]


def _cosine(step: int, steps: int) -> float:
    """Share of the peak rate: linear warm-up over a tenth, then a cosine to a hundredth (Loshchilov &
    Hutter 2017).
    """
    warm = max(1, steps // 10)
    if step < warm:
        return (step + 1) / warm
    progress = min((step - warm) / max(steps - warm, 1), 1.0)
    return 0.01 + 0.99 * 0.5 * (1 + float(np.cos(np.pi * progress)))


def _validate(model: TransferModel, x: Tensor, y: Tensor) -> tuple[float, float]:
    """(cross-entropy, accuracy) from features at the model's boundary."""
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model.trainable_rest(part) for part in torch.split(x, 64)])
    return float(F.cross_entropy(logits, y)), float((logits.argmax(1) == y).float().mean())
