"""Fine-tuning in phases: first the head on a frozen backbone, then the top blocks unfrozen. Speaks to no
platform.

A phase can be left after any epoch and taken up again to the bit: all that it draws at random is drawn from
(seed, epoch), its rates are functions of the step, and the rest is in the tensors of its state.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.devices import autocast_bf16, memory_errors, to_host
from models.networks.transfer_model import TransferModel
from pipelines.config.schema import PhaseConfig, TrainConfig
from pipelines.errors import LossNotFinite
from pipelines.progress import EpochResult, Reporter
from pipelines.training.features import Features, PhaseFeatures
from pipelines.training.losses import BatchMixer, Objective
from pipelines.training.schedules import lr_factor, momentum

_BETA_2 = 0.999
_EMA_WARM_UP = 10


@dataclass
class PhaseResult:
    """A finished phase; the model holds its best state."""

    phase: PhaseConfig
    trained_blocks: list[str]
    cached_views: int
    """0 when the set was too large for the cache."""
    epochs: list[EpochResult] = field(default_factory=list)

    @property
    def best(self) -> EpochResult:
        """The epoch whose state was kept."""
        return [epoch for epoch in self.epochs if epoch.best][-1]


@dataclass(frozen=True, slots=True)
class PhaseState:
    """A phase after one of its epochs, all that is needed to go on as if nothing had happened."""

    epochs: list[EpochResult]
    tensors: Mapping[str, Tensor]
    """The trained part, its best state, the optimiser's moments and the moving average; views of what
    training goes on to change, so write them or copy them at once.
    """


def run_phase(
    model: TransferModel,
    features: PhaseFeatures,
    phase: PhaseConfig,
    objective: Objective,
    reporter: Reporter,
    *,
    seed: int,
    state: PhaseState | None = None,
    save: Callable[[PhaseState], None] = lambda state: None,
) -> PhaseResult:
    """Train one phase and leave the model in its best state: the one of the lowest validation loss.

    The loss, not the accuracy: on a small validation set accuracy moves in steps of an image and favours a
    lucky epoch. The state that the phase began with competes too, so a phase that does not help changes
    nothing. ``save`` is called after each epoch with what ``state`` takes.
    Raises LossNotFinite when the loss is not finite; the model then holds the best state before.
    """
    training = _PhaseTrainer(model, features, phase, objective, seed)
    epochs = list(state.epochs) if state is not None else []
    if state is not None:
        training.load(state.tensors)
    else:
        epochs.append(training.measure(0, None, best_before=float("inf")))
        save(PhaseState(epochs, training.tensors()))
        reporter.epoch(epochs[-1])
    result = PhaseResult(phase, training.parts, len(features.train), epochs)
    while epochs[-1].number < phase.epochs and not _stalled(result):
        number = epochs[-1].number + 1
        loss = training.epoch(number, reporter)
        epochs.append(training.measure(number, loss, best_before=result.best.val_loss))
        save(PhaseState(epochs, training.tensors()))
        reporter.epoch(epochs[-1])
    if _stalled(result):
        # The bar of a phase that stops early ends where it is.
        steps = epochs[-1].number * training.steps_per_epoch
        reporter.step(f"phase {phase.name}", steps, steps)
    training.restore_best()
    return result


def run_phases(
    model: TransferModel,
    features: Features,
    config: TrainConfig,
    objective: Objective,
    *,
    reporter_of: Callable[[int], Reporter] = lambda number: Reporter(),
    done: int = 0,
    state: PhaseState | None = None,
    save: Callable[[PhaseState], None] = lambda state: None,
) -> Iterator[PhaseResult]:
    """Train the phases after the first ``done`` one by one, the first of them from ``state``.

    ``reporter_of`` is called with a phase's number, from 1, when it begins. Raises LossNotFinite.
    """
    for number, phase in enumerate(config.phases[done:], start=done + 1):
        reporter = reporter_of(number)
        at_boundary = features.at(phase.train_from)
        result = run_phase(
            model, at_boundary, phase, objective, reporter, seed=config.seed + number, state=state, save=save
        )
        at_boundary.release()
        state = None
        yield result


def rate_groups(model: TransferModel, phase: PhaseConfig) -> list[dict[str, Any]]:
    """Return optimiser groups, the rate falling by ``block_decay`` with each block below the head (Howard &
    Ruder 2018); ``peak`` is each group's highest rate.
    """
    groups = model.trainable_groups()
    peaks = [phase.rate * phase.block_decay**depth for depth in range(len(groups) - 1, -1, -1)]
    return [
        {"params": params, "lr": peak, "peak": peak, "name": name}
        for (name, params), peak in zip(groups, peaks, strict=True)
    ]


def _stalled(result: PhaseResult) -> bool:
    patience = result.phase.patience
    return patience > 0 and result.epochs[-1].number - result.best.number >= patience


class _PhaseTrainer:
    """The moving parts of one phase."""

    def __init__(
        self,
        model: TransferModel,
        features: PhaseFeatures,
        phase: PhaseConfig,
        objective: Objective,
        seed: int,
    ) -> None:
        model.freeze_below(phase.train_from, batch_norm_frozen=phase.batch_norm == "frozen")
        self.model, self.features, self.phase, self.objective = model, features, phase, objective
        self.seed = seed
        self.groups = rate_groups(model, phase)
        self.parts = [str(group["name"]) for group in self.groups]
        self.params: list[Tensor] = [p for group in self.groups for p in group["params"]]
        # A new optimiser for each phase: moments gathered at another boundary would point the wrong way, and
        # what is frozen must not be in it at all, or weight decay would move it.
        self.optimiser = torch.optim.AdamW(
            self.groups, lr=phase.rate, weight_decay=phase.weight_decay, betas=(0.9, _BETA_2)
        )
        self.steps_per_epoch = -(-features.pictures // features.source.config.batch_size)
        self.mixer = BatchMixer(phase, len(model.classes))
        self.average = _WeightAverage(self.params, phase.ema_decay) if phase.ema_decay else None
        self.best: dict[str, Tensor] = {}

    def epoch(self, number: int, reporter: Reporter) -> float:
        """Train on every image once; returns the mean loss."""
        steps = self.phase.epochs * self.steps_per_epoch
        torch.manual_seed(_seed_of(self.seed, number))
        order = np.random.default_rng([self.seed, number]).permutation(self.features.pictures)
        self.model.train()
        losses: list[float] = []
        for step, (x, targets) in enumerate(
            self.features.epoch(number - 1, order), start=(number - 1) * self.steps_per_epoch
        ):
            self._set_rates(step, steps)
            loss = self._step(*self.mixer(x, targets))
            if not np.isfinite(loss):
                self._refuse(f"The training loss is {loss}", f"in step {len(losses) + 1} of epoch {number}")
            losses.append(loss)
            reporter.step(f"phase {self.phase.name}", step + 1, steps)
        return float(np.mean(losses))

    def _step(self, x: Tensor, targets: Tensor) -> float:
        self.optimiser.zero_grad(set_to_none=True)
        bf16 = self.phase.precision == "bfloat16"
        with memory_errors(len(x), "lower batch_size"), autocast_bf16(self.model.device, enabled=bf16):
            logits = self.model.trainable_rest(x)
        loss = self.objective.loss(logits, targets, smoothing=self.phase.label_smoothing)
        value = float(loss.detach())
        if np.isfinite(value):
            with memory_errors(len(x), "lower batch_size"):
                torch.autograd.backward(loss)
            if self.phase.clip_norm:
                torch.nn.utils.clip_grad_norm_(self.params, self.phase.clip_norm)
            self.optimiser.step()
            if self.average is not None:
                self.average.update()
        return value

    def _set_rates(self, step: int, steps: int) -> None:
        share = lr_factor(self.phase.schedule, step, steps)
        for group in self.optimiser.param_groups:
            group["lr"] = group["peak"] * share
            group["betas"] = (momentum(self.phase.schedule, step, steps), _BETA_2)

    def measure(self, number: int, train_loss: float | None, *, best_before: float) -> EpochResult:
        """Validate, and keep the state if it is the best."""
        with self._judged_weights():
            loss, accuracy = self._validate()
            # A loss that is no number is below nothing.
            best = loss < best_before
            if best:
                self.best = {key: value.clone() for key, value in self._trained().items()}
        if not np.isfinite(loss):
            self._refuse(f"The validation loss is {loss}", f"after epoch {number}")
        rates = {str(group["name"]): float(group["lr"]) for group in self.optimiser.param_groups}
        return EpochResult(
            self.phase.name,
            number,
            self.phase.epochs,
            train_loss,
            loss,
            accuracy,
            rates,
            best,
            ended_ms=int(time.time() * 1000),
        )

    def _validate(self) -> tuple[float, float]:
        """Return (loss, accuracy) from features at the model's boundary."""
        self.model.eval()
        with torch.no_grad():
            logits = to_host(torch.cat([self.model.trainable_rest(x) for x in self.features.validation()]))
        targets = self.features.source.val_targets
        right = self.objective.correctness(logits, targets)
        return float(self.objective.loss(logits, targets)), float(right.mean())

    def _refuse(self, what: str, where: str) -> None:
        if self.best:
            self.restore_best()
        raise LossNotFinite(
            f"{what} {where} of phase {self.phase.name!r}; the best state so far is kept. "
            f"Lower the phase's rate (now {self.phase.rate:g}), or look for odd pictures in the data."
        )

    @contextmanager
    def _judged_weights(self) -> Iterator[None]:
        """Hold the moving average in place of the weights, where there is one."""
        if self.average is None:
            yield
            return
        with self.average.in_place():
            yield

    # ------------------------------------------------------------ state

    def _trained(self) -> dict[str, Tensor]:
        """Return weights and buffers that this phase may change."""
        return self.model.state_above(self.model.frozen_blocks)

    def tensors(self) -> dict[str, Tensor]:
        """Return all that the phase's future depends on, as named tensors."""
        # Lower blocks may have been trained by an earlier phase, so everything that any phase changes is
        # kept.
        whole = self.model.state_above(self.features.source.lowest)
        tensors = {f"model.{key}": value for key, value in whole.items()}
        tensors |= {f"best.{key}": value for key, value in self.best.items()}
        for place, param in enumerate(self.params):
            for key, value in self.optimiser.state.get(param, {}).items():
                tensors[f"adamw.{place}.{key}"] = value
        if self.average is not None:
            tensors |= self.average.tensors()
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put a state of :meth:`tensors` back."""
        self.model.load_state_dict(_with_prefix(tensors, "model."), strict=False)
        trained = self._trained()
        self.best = {key: _like(value, trained[key]) for key, value in _with_prefix(tensors, "best.").items()}
        for place, param in enumerate(self.params):
            state = _with_prefix(tensors, f"adamw.{place}.")
            # In the weights' own memory layout, or a vectorised kernel could round otherwise than before.
            self.optimiser.state[param] = {
                key: value if value.ndim == 0 else _like(value, param) for key, value in state.items()
            }
        if self.average is not None:
            self.average.load(tensors)

    def restore_best(self) -> None:
        """Leave the model in its best state, in eval mode."""
        self.model.load_state_dict(self.best, strict=False)
        self.model.eval()


class _WeightAverage:
    """An exponential moving average of the trained weights (Polyak averaging), warmed up so that early steps
    do not hang on the start.
    """

    def __init__(self, params: list[Tensor], decay: float) -> None:
        self.params, self.decay, self.updates = params, decay, 0
        self.values = [p.detach().clone() for p in params]

    def update(self) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (_EMA_WARM_UP + self.updates))
        with torch.no_grad():
            for value, param in zip(self.values, self.params, strict=True):
                value.lerp_(param, 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Hold the averages as the weights, for as long as the context lasts."""
        own = [p.detach().clone() for p in self.params]
        try:
            self._put(self.values)
            yield
        finally:
            self._put(own)

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for param, value in zip(self.params, values, strict=True):
                param.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        tensors = {f"average.{place}": value for place, value in enumerate(self.values)}
        return tensors | {"average.updates": torch.tensor(self.updates)}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self.updates = int(tensors["average.updates"])
        self.values = [_like(tensors[f"average.{place}"], p) for place, p in enumerate(self.params)]


def _seed_of(seed: int, number: int) -> int:
    return int(np.random.default_rng([seed, number, 1]).integers(2**63))


def _with_prefix(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _like(value: Tensor, pattern: Tensor) -> Tensor:
    """Return a copy in the pattern's memory layout."""
    return torch.empty_like(pattern).copy_(value).detach()
