"""The work of one training run: phases with a checkpoint after each epoch, evaluation, bundle, review,
registry.

Everything said about it goes through an outbox, so MLflow may be away while it trains.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch

from models.bundle import load_bundle, save_bundle
from models.networks.scoring import Scoring
from models.networks.transfer_model import TransferModel
from models.progress import Progress
from pipelines.config.loader import config_to_toml
from pipelines.data.augmentation import draw_views_figure
from pipelines.data.dataset import Dataset, Sample, with_task
from pipelines.data.visibility import describe_view, seen_shares
from pipelines.errors import LossNotFinite, TrackerUnavailable, TrainingError
from pipelines.evaluation.classification import Evaluation, evaluate, evaluate_logits, fit_temperature
from pipelines.evaluation.explanations import (
    LocalizationResult,
    check_methods,
    localization_to_json,
    measure_localization,
)
from pipelines.evaluation.phase_snapshots import (
    PhaseSnapshot,
    choose_probes,
    draw_snapshots_figure,
    flatten_weights,
    map_movement,
    take_snapshot,
)
from pipelines.evaluation.plots import plot_confusion, plot_history, plot_reliability, plot_weight_movement
from pipelines.progress import EpochResult, Reporter
from pipelines.reports.review import log_review
from pipelines.reports.samples import log_samples
from pipelines.tracking.registry import register_version
from pipelines.tracking.runs import RunLogger
from pipelines.training.checkpoint import FinishedPhase, RunFolder, RunManifest, TrainingCheckpoint
from pipelines.training.environment import (
    SystemMetrics,
    describe_environment,
    git_tags,
    package_versions,
    peak_memory_mb,
)
from pipelines.training.feature_cache import FeatureCache, default_cache_folder
from pipelines.training.features import Features
from pipelines.training.linear_probe import fit_linear_probe
from pipelines.training.losses import Objective, make_objective
from pipelines.training.trainer import PhaseResult, PhaseState, run_phases

_PATIENCE_S, _PATIENCE_WHEN_STOPPED_S = 120.0, 5.0
"""How long a finished, and how long an interrupted run waits for MLflow."""


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """The result of a run."""

    run_id: str
    name: str
    version: str
    digest: str
    evaluations: dict[str, Evaluation]
    baseline: float | None
    """Validation accuracy of the linear probe."""
    peak_memory_mb: float


class TrainingRun:
    """A run at work in this process, new or resumed."""

    def __init__(self, plan: RunManifest, folder: RunFolder, data: Dataset, reporter: Reporter) -> None:
        self.plan, self.folder, self.config = plan, folder, plan.config
        self.data = with_task(data, plan.config.task)
        self.log = RunLogger(plan.run_id, folder.outbox)
        self.system = SystemMetrics(plan.started_ms)
        self.reporter = replace(reporter, step=self._with_system_metrics(reporter.step))
        self.open_runs = [plan.run_id]

    def go(self, model: TransferModel) -> TrainedModel:
        """Train: the whole run, or what is left of it."""
        with self._ended():
            self.log.status("RUNNING")
            samples = (*self.data.train, *self.data.val, *self.data.test)
            self.reporter.say(describe_view(model.geometry, seen_shares(model.geometry, samples)))
            checkpoint = self.folder.read_checkpoint()
            if checkpoint is None:
                self._describe(model)
            before = flatten_weights(model)
            store = FeatureCache(
                default_cache_folder(), memory_gb=self.config.cache_gb, disk_gb=self.config.cache_disk_gb
            )
            features = Features(model, self.data, self.config, store, self.reporter)
            baseline = fit_linear_probe(features)
            ended_ms = self._phases(model, features, before, checkpoint)
            trained = self._finish(model, baseline, ended_ms)
        self.folder.remove()
        return trained

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """End the runs with the status that fits what happened, and deliver it to MLflow if possible."""
        try:
            yield
            self._end("FINISHED", _PATIENCE_S)
            for reason in self.log.refused:
                self.reporter.say(f"MLflow did not take all that was said: {reason}")
        except (KeyboardInterrupt, SystemExit):
            self._end_badly("KILLED")
            raise
        except LossNotFinite:
            # The same settings would come to the same.
            self._end_badly("FAILED", advice=f"The best state is kept in {self.folder.path}.")
            raise
        except BaseException:
            self._end_badly("FAILED")
            raise
        finally:
            self.log.close()

    def _end(self, status: str, patience_s: float) -> None:
        for run_id in reversed(self.open_runs):
            self.log.status(status, run_id=run_id)
        try:
            self.log.flush(patience_s)
        except TrackerUnavailable as error:
            raise TrackerUnavailable(f"{error} {self._how_to_go_on()}") from error

    def _end_badly(self, status: str, *, advice: str = "") -> None:
        # What cannot be said now is said when the run is resumed; the error on its way matters more.
        with suppress(TrackerUnavailable, TrainingError):
            self._end(status, _PATIENCE_WHEN_STOPPED_S)
        self.reporter.say(advice or self._how_to_go_on())

    def _how_to_go_on(self) -> str:
        return f"The run is kept in {self.folder.path}; go on with: lucida train --resume {self.plan.run_id}"

    def _with_system_metrics(self, step: Progress) -> Progress:
        def step_and_sample(what: str, done: int, total: int) -> None:
            step(what, done, total)
            if (sample := self.system.sample()) is not None:
                self.log.metrics(sample[1], step=sample[0])

        return step_and_sample

    # ------------------------------------------------------------ the beginning

    def _describe(self, model: TransferModel) -> None:
        """Log parameters, data, versions and examples of the augmentation."""
        data = self.data
        self.log.params({"model_name": self.plan.name, "data": data.name, **self.config.flat()})
        self.log.tags(
            {
                "dataset.digest": data.digest,
                **package_versions(),
                **git_tags(Path.cwd()),
            }
        )
        self.log.dataset(data)
        self.log.file(_to_json(data.describe()), "dataset.json")
        self.log.file(config_to_toml(self.config), "config.toml")
        self.log.file(describe_environment(), "environment.txt")
        self.log.image(draw_views_figure(model.geometry, data, self.config), "augmented_samples.png")

    # ------------------------------------------------------------ the phases

    def _phases(
        self,
        model: TransferModel,
        features: Features,
        before: dict[str, torch.Tensor],
        checkpoint: TrainingCheckpoint | None,
    ) -> int:
        """Train what is left and return when the last epoch ended: later metrics get this timestamp, so that
        a resumed run that logs them again does not double them.
        """
        done = list(checkpoint.done) if checkpoint is not None else []
        state = checkpoint.state if checkpoint is not None else None
        probes = choose_probes(self.data)
        objective = self._objective(features)
        run_ids = self.plan.phase_runs

        def begin(number: int) -> Reporter:
            run_id = run_ids[number - 1]
            self.open_runs.append(run_id)
            self.log.status("RUNNING", run_id=run_id)
            if state is not None and number == already + 1:
                self._take_up(model, state, run_id)
            return replace(self.reporter, epoch=partial(self._epoch_news, run_id))

        already = len(done)
        for result in run_phases(
            model, features, self.config, objective, reporter_of=begin, done=already, state=state,
            save=lambda state: self.folder.write_checkpoint(TrainingCheckpoint(done, state)),
        ):  # fmt: skip
            run_id = run_ids[len(done)]
            done.append(FinishedPhase(result.epochs, take_snapshot(model, probes, result.phase.name, before)))
            self._log_phase(result, done[-1].after, run_id)
            self.log.status("FINISHED", run_id=run_id)
            self.open_runs.remove(run_id)
            if result.best.number == 0:
                self.reporter.say(
                    f"Phase {result.phase.name} did not lower the validation loss; "
                    "the state before it is kept."
                )
        ended_ms = done[-1].epochs[-1].ended_ms
        self._log_story(model, probes, done, ended_ms)
        return ended_ms

    def _take_up(self, model: TransferModel, state: PhaseState, run_id: str) -> None:
        """Put back what earlier phases trained, before features are raised to this phase's boundary."""
        prefix = "model."
        model_state = {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
        model.load_state_dict(model_state, strict=False)
        # The last epoch's news may have been lost with the process; told twice it stays one.
        self._log_epoch(state.epochs[-1], run_id)

    def _objective(self, features: Features) -> Objective:
        objective = make_objective(self.data.task, self.config.class_weights, features.targets)
        if objective.weights is not None:
            named = zip(self.data.classes, objective.weights.tolist(), strict=True)
            # Classes may have any name, a tracker's parameters may not.
            self.log.params({"class_weights.values": json.dumps({name: round(w, 4) for name, w in named})})
        return objective

    def _epoch_news(self, run_id: str, epoch: EpochResult) -> None:
        self._log_epoch(epoch, run_id)
        self.reporter.epoch(epoch)

    def _log_epoch(self, epoch: EpochResult, run_id: str) -> None:
        values = {"val_loss": epoch.val_loss, "val_accuracy": epoch.val_accuracy}
        if epoch.train_loss is not None:
            values["train_loss"] = epoch.train_loss
        values |= {f"rate.{name}": rate for name, rate in epoch.rates.items()}
        self.log.metrics(values, step=epoch.number, run_id=run_id, timestamp_ms=epoch.ended_ms)

    def _log_phase(self, result: PhaseResult, after: PhaseSnapshot, run_id: str) -> None:
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

    def _log_story(
        self, model: TransferModel, probes: list[Sample], done: list[FinishedPhase], ended_ms: int
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
        self.log.file(_to_json(story), "forensics/forensics.json")
        if shifted:
            self.log.metrics({f"evidence_moved.{k}": v for k, v in shifted.items()}, timestamp_ms=ended_ms)

    # ------------------------------------------------------------ the end

    def _finish(self, model: TransferModel, baseline: float | None, ended_ms: int) -> TrainedModel:
        """Calibrate, evaluate, save the bundle, review and register."""
        evaluations = self._evaluate(model)
        metrics = {
            f"{split}_{key}": value
            for split, evaluation in evaluations.items()
            for key, value in evaluation.metrics.items()
        }
        if baseline is not None:
            metrics["baseline_accuracy"] = baseline
        metrics["temperature"] = model.scoring.temperature
        located = self._locate(model)
        metrics |= {key: value for result in located for key, value in result.metrics().items()}
        self.log.metrics(metrics, timestamp_ms=ended_ms)
        sanity = check_methods(
            model, choose_probes(self.data), self.config.sanity, progress=self.reporter.step
        )
        if sanity is not None:
            self.log.file(_to_json(sanity.to_dict()), "explanations/sanity.json")
        self.log.tags({"peak_memory_mb": f"{peak_memory_mb():.0f}"})
        log_samples(evaluations["val"], self.log.file)
        with self._bundle_folder() as folder:
            digest = save_bundle(
                model,
                folder,
                name=self.plan.name,
                run_id=self.plan.run_id,
                metrics=metrics,
                dataset=self.data.summary(),
                training=self.config.flat(),
                sanity=sanity,
            )
            checked = load_bundle(folder)
            log_review(
                checked.model,
                list(evaluations.values()),
                self.data,
                name=self.plan.name,
                run_id=self.plan.run_id,
                digest=digest,
                baseline=baseline,
                keep=self.log.file,
                keep_table=self.log.table,
                reporter=self.reporter,
                located=[result for result in located if result.split == "val"],
            )
            self.log.flush(_PATIENCE_S)
            registered = register_version(
                folder, name=self.plan.name, run_id=self.plan.run_id, metrics=metrics, timestamp_ms=ended_ms
            )
        return TrainedModel(
            run_id=self.plan.run_id,
            name=self.plan.name,
            version=str(registered.version),
            digest=digest,
            evaluations=evaluations,
            baseline=baseline,
            peak_memory_mb=peak_memory_mb(),
        )

    @contextmanager
    def _bundle_folder(self) -> Iterator[Path]:
        """Yield a new folder for the bundle beside the checkpoint; what an interrupted attempt left goes
        first.
        """
        folder = self.folder.path / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
        except OSError as error:
            raise TrainingError(
                f"The run could not be finished in {self.folder.path}: {error.strerror or error}. "
                "The checkpoint is whole."
            ) from error

    def _locate(self, model: TransferModel) -> list[LocalizationResult]:
        """Return where the evidence lies against the data's masks and boxes; nothing without them."""
        located = [
            result for split in ("val", "test") for result in measure_localization(model, self.data, split)
        ]
        if located:
            self.log.file(localization_to_json(located), "explanations/localisation.json")
        return located

    def _evaluate(self, model: TransferModel) -> dict[str, Evaluation]:
        """Judge the held-out splits with the temperature that fits the validation split."""
        raw = {
            split: evaluate(model, self.data.samples(split), split, progress=self.reporter.step)
            for split in ("val", "test")
            if self.data.samples(split)
        }
        model.scoring = Scoring(model.scoring.task, fit_temperature(raw["val"], model.scoring))
        calibrated = {}
        for split, evaluation in raw.items():
            samples = self.data.samples(split)
            calibrated[split] = evaluate_logits(
                self.data.classes, model.scoring, samples, split, evaluation.logits
            )
            calibrated[split].metrics["uncalibrated_ece"] = evaluation.metrics["ece"]
            calibrated[split].metrics["uncalibrated_loss"] = evaluation.metrics["loss"]
            before, after = evaluation.metrics["ece"], calibrated[split].metrics["ece"]
            title = f"{split}: calibration error {before:.3f} → {after:.3f}"
            diagram = plot_reliability(evaluation.reliability, calibrated[split].reliability, title=title)
            self.log.image(diagram, f"reliability_{split}.png")
            self.log.image(plot_confusion(calibrated[split]), f"confusion_{split}.png")
            self.log.file(_to_json([asdict(row) for row in calibrated[split].table]), f"classes_{split}.json")
        return calibrated


def _to_json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)
