"""What a training run logs on its way: settings, data, epochs, phases, and how its evidence moved."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from models.networks.transfer_model import TransferModel
from pipelines.config.loader import config_to_toml
from pipelines.data.augmentation import draw_views_figure
from pipelines.data.dataset import Dataset, Sample
from pipelines.evaluation.phase_snapshots import PhaseSnapshot, draw_snapshots_figure, map_movement
from pipelines.evaluation.plots import plot_history, plot_weight_movement
from pipelines.progress import EpochResult
from pipelines.tracking.runs import RunLogger
from pipelines.training.checkpoint import FinishedPhase, RunManifest
from pipelines.training.environment import describe_environment, git_tags, package_versions
from pipelines.training.trainer import PhaseResult


class RunRecord:
    """A writer of a run's own facts, by the names that they have in MLflow."""

    def __init__(self, plan: RunManifest, data: Dataset, log: RunLogger) -> None:
        self.plan, self.data, self.log = plan, data, log

    def describe(self, model: TransferModel) -> None:
        """Log parameters, data, versions and examples of the augmentation."""
        data = self.data
        self.log.params({"model_name": self.plan.name, "data": data.name, **self.plan.config.flat()})
        self.log.tags(
            {
                "dataset.digest": data.digest,
                **package_versions(),
                **git_tags(Path.cwd()),
            }
        )
        self.log.dataset(data)
        self.log.file(to_json(data.describe()), "dataset.json")
        self.log.file(config_to_toml(self.plan.config), "config.toml")
        self.log.file(describe_environment(), "environment.txt")
        self.log.image(draw_views_figure(model.geometry, data, self.plan.config), "augmented_samples.png")

    def epoch(self, epoch: EpochResult, run_id: str) -> None:
        """Log one epoch; of the untrained head there is nothing to say."""
        values = {"val_loss": epoch.val_loss, "val_accuracy": epoch.val_accuracy}
        if epoch.train_loss is None:
            # The state before the phase was trained.
            if run_id == self.plan.phase_runs[0]:
                return
        else:
            values["train_loss"] = epoch.train_loss
            values |= {f"rate.{name}": rate for name, rate in epoch.rates.items()}
        self.log.metrics(values, step=epoch.number, run_id=run_id, timestamp_ms=epoch.ended_ms)

    def phase(self, result: PhaseResult, after: PhaseSnapshot, run_id: str) -> None:
        """Log a finished phase: its settings, what was trained, and how far the weights moved."""
        settings = asdict(result.phase)
        del settings["name"]
        facts = {
            "trained_parts": ", ".join(result.trained_blocks),
            "cached_views": result.cached_views,
            "best_epoch": result.best.number,
            "last_epoch": result.epochs[-1].number,
        }
        self.log.params(settings | facts, run_id=run_id)
        moved = {f"moved.{name}": share for name, share in after.moved.items() if share > 0}
        self.log.metrics(moved, run_id=run_id, timestamp_ms=result.epochs[-1].ended_ms)

    def story(
        self, model: TransferModel, probes: Sequence[Sample], done: Sequence[FinishedPhase], ended_ms: int
    ) -> None:
        """Log the curves, the probes' evidence phase by phase, and how far weights and maps moved."""
        snapshots = [finished.after for finished in done]
        shifted = map_movement(snapshots)
        story = {
            "probes": [sample.name for sample in probes],
            "phases": [asdict(snapshot) for snapshot in snapshots],
            "evidence_moved": shifted,
        }
        names = [snapshot.phase for snapshot in snapshots]
        self.log.image(plot_history([finished.epochs for finished in done]), "history.png")
        self.log.image(draw_snapshots_figure(model, probes, snapshots), "forensics/probes.png")
        self.log.image(
            plot_weight_movement(names, [snapshot.moved for snapshot in snapshots]),
            "forensics/weights_moved.png",
        )
        self.log.file(to_json(story), "forensics/forensics.json")
        if shifted:
            self.log.metrics({f"evidence_moved.{k}": v for k, v in shifted.items()}, timestamp_ms=ended_ms)


def to_json(value: object) -> str:
    """Return JSON text as a run's files have it."""
    return json.dumps(value, indent=2, ensure_ascii=False)
