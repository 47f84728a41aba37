"""Where news of long work goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.progress import Progress, no_progress


@dataclass(frozen=True, slots=True)
class EpochResult:
    """The results of one epoch."""

    phase: str
    number: int
    """From 1; 0 is the state that the phase began with."""
    of: int
    train_loss: float | None
    """None for epoch 0."""
    val_loss: float
    val_accuracy: float
    rates: dict[str, float]
    """Learning rate of each part, from the lowest trained block to the head, at the end of the epoch."""
    best: bool
    """Whether this is the lowest validation loss of the phase so far."""
    ended_ms: int = 0
    """When the epoch ended, in ms since 1970; by it, an epoch that is logged twice is kept once."""


@dataclass(frozen=True, slots=True)
class Reporter:
    """A listener for the progress of a run; the defaults do nothing."""

    epoch: Callable[[EpochResult], None] = lambda epoch: None
    step: Progress = no_progress
    say: Callable[[str], None] = lambda sentence: None
    """A sentence that the user should read."""
