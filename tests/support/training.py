"""Training in memory, with no tracker and nothing to resume."""

from __future__ import annotations

from models.networks.transfer_model import TransferModel
from pipelines.config.schema import TrainConfig
from pipelines.data.dataset import Dataset
from pipelines.progress import Reporter
from pipelines.training.feature_cache import FeatureCache, default_cache_folder
from pipelines.training.features import Features
from pipelines.training.losses import make_objective
from pipelines.training.trainer import PhaseResult, run_phases


def fine_tune(
    model: TransferModel, data: Dataset, config: TrainConfig, reporter: Reporter | None = None
) -> list[PhaseResult]:
    """Train all phases; the model then holds the best state."""
    reporter = reporter or Reporter()
    store = FeatureCache(default_cache_folder(), memory_gb=config.cache_gb, disk_gb=config.cache_disk_gb)
    features = Features(model, data, config, store, reporter)
    objective = make_objective(data.task, config.class_weights, features.targets)
    return list(run_phases(model, features, config, objective, reporter_of=lambda number: reporter))
