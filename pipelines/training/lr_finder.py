"""The learning rate range test: one short run at rising rates, thrown away afterwards (Smith 2017)."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from models.networks.transfer_model import TransferModel
from pipelines.config.schema import PhaseConfig
from pipelines.progress import Reporter
from pipelines.training.features import PhaseFeatures
from pipelines.training.losses import Objective
from pipelines.training.trainer import rate_groups

_FROM, _TO = 1e-6, 1.0
_SMOOTHING = 0.9
_YOUNG, _REACH = 8, 4
_DIVERGED = 4.0
"""The test ends when the smoothed loss is this many times its lowest."""


@dataclass(frozen=True, slots=True)
class LrRangeTest:
    """Losses along rising rates."""

    phase: str
    rates: list[float]
    """Of the head; blocks below take their share of it as in training."""
    losses: list[float]
    """Exponentially smoothed, with bias correction."""
    suggested: float
    """Where the loss falls fastest per decade: a peak rate that still learns and is far from diverging."""


def run_lr_range_test(
    model: TransferModel,
    features: PhaseFeatures,
    phase: PhaseConfig,
    objective: Objective,
    reporter: Reporter,
    *,
    seed: int,
    steps: int = 100,
) -> LrRangeTest:
    """Try rates from 1e-6 to 1 on the phase's own features; the model is left as it was."""
    initial_state = copy.deepcopy(model.state_dict())
    model.freeze_below(phase.train_from, batch_norm_frozen=phase.batch_norm == "frozen")
    torch.manual_seed(seed)
    try:
        rates, losses = _rise(model, features, phase, objective, reporter, seed, steps)
    finally:
        model.load_state_dict(initial_state)
        model.eval()
    return LrRangeTest(phase.name, rates, losses, _steepest(rates, losses))


def _rise(
    model: TransferModel,
    features: PhaseFeatures,
    phase: PhaseConfig,
    objective: Objective,
    reporter: Reporter,
    seed: int,
    steps: int,
) -> tuple[list[float], list[float]]:
    groups = rate_groups(model, phase)
    optimiser = torch.optim.AdamW(groups, lr=_FROM, weight_decay=phase.weight_decay)
    model.train()
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    for step, (x, targets) in zip(range(steps), _endless(features, seed), strict=False):
        rate = _FROM * (_TO / _FROM) ** (step / max(steps - 1, 1))
        for group in optimiser.param_groups:
            group["lr"] = rate * group["peak"] / phase.rate
        optimiser.zero_grad(set_to_none=True)
        loss = objective.loss(model.trainable_rest(x), targets, smoothing=phase.label_smoothing)
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * float(loss.detach())
        smoothed = mean / (1 - _SMOOTHING ** (step + 1))
        if not np.isfinite(smoothed) or (losses and smoothed > _DIVERGED * min(losses)):
            break
        rates.append(rate)
        losses.append(smoothed)
        torch.autograd.backward(loss)
        optimiser.step()
        reporter.step(f"rates of {phase.name}", step + 1, steps)
    return rates, losses


def _endless(features: PhaseFeatures, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    number = 0
    while True:
        order = np.random.default_rng([seed, number]).permutation(features.pictures)
        yield from features.epoch(number, order)
        number += 1


def _steepest(rates: list[float], losses: list[float]) -> float:
    """Return the rate of the steepest fall before the lowest loss, each fall taken over some steps so that
    the noise of single batches, greatest while the running mean is young, does not decide.
    """
    lowest = int(np.argmin(losses[_YOUNG:])) + _YOUNG if len(losses) > _YOUNG else len(losses) - 1
    places = range(_YOUNG, lowest - _REACH)
    falls = [losses[place + _REACH] - losses[place - _REACH] for place in places]
    return rates[places[int(np.argmin(falls))]] if falls else rates[max(lowest // 2, 0)]
