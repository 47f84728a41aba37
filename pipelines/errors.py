"""Exceptions that only pipelines raise; the tree goes on from :mod:`models.errors`.

LucidaError
├── DataError               a data set that cannot be trained or explained
├── TrainingError           training had to stop
│   └── LossNotFinite       the loss is NaN or infinite
├── StoreUnavailable        an object store does not answer, or refuses
├── RegistryError           a model, version or run that is not there or not fit
└── TrackerUnavailable      MLflow does not answer
"""

from __future__ import annotations

from models.errors import LucidaError


class DataError(LucidaError):
    """A data set that cannot be trained or explained."""


class TrainingError(LucidaError):
    """A failure that stops training."""


class LossNotFinite(TrainingError):
    """The loss became infinite or no number; the best state before is kept."""


class TrackerUnavailable(LucidaError):
    """The experiment tracker is away, locked or full; nothing that was meant for it is lost."""


class RegistryError(LucidaError):
    """A run, model version or alias that is not there or may not be changed."""


class StoreUnavailable(LucidaError):
    """An object store that does not answer, or refuses."""
