"""One training run from a folder of pictures to a registered model version, with its story in MLflow.

A run that is interrupted, killed or cut off from MLflow is taken up again by :func:`resume`: at most the
epoch in progress is lost, and the model comes out the same to the bit.
"""

from __future__ import annotations

import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import PIL.Image
import torch

from models import bundle
from models.backbones import Pretraining
from models.errors import TrackerUnavailable, TrainingError
from models.render.contact_sheet import Tile, contact_sheet
from models.scoring import Scoring
from models.transfer import TransferModel
from pipelines import forensics, plots, recipes, run_folder, surroundings
from pipelines.augment import Augmenter
from pipelines.baseline import linear_probe
from pipelines.config import TrainConfig
from pipelines.data import Dataset, Sample, with_task
from pipelines.evaluate import Evaluation, evaluate, fit_temperature, judge
from pipelines.feature_store import FeatureStore, default_folder
from pipelines.features import Features
from pipelines.finetune import PhaseResult, PhaseState, run_phase
from pipelines.objective import Objective, balanced_weights
from pipelines.rate_finder import RateTest, find_rate
from pipelines.reporter import Epoch, Reporter
from pipelines.review.log import log_review
from pipelines.run_folder import Checkpoint, DonePhase, Plan, RunFolder
from pipelines.tracking import registry, runs
from pipelines.tracking.runs import RunLog

_PATIENCE_S, _PATIENCE_WHEN_STOPPED_S = 120.0, 5.0


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to."""

    run_id: str
    name: str
    version: str
    digest: str
    evaluations: dict[str, Evaluation]
    baseline: float | None
    """Validation accuracy of the linear probe."""
    peak_memory_mb: float


def train(data: Dataset, config: TrainConfig, *, name: str, reporter: Reporter | None = None) -> Trained:
    """Fine-tune in phases, evaluate, save the bundle, log everything and register the model version.

    Deterministic on one machine for one config and data set. Raises the project's errors; a run that fails is
    marked FAILED in MLflow, one that is interrupted KILLED.
    """
    reporter = reporter or Reporter()
    registry.check_name(name)
    config = replace(config, task=with_task(data, config.task).task)
    threads = config.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    # Weights that are missing should be known before a run is opened.
    model = _new_model(data, config)
    root = run_folder.default_root()
    end_abandoned(root)
    folder = RunFolder(root / uuid.uuid4().hex)
    with folder.locked():
        phases = [phase.name for phase in config.phases]
        run_id, children = runs.open_runs(f"{name} {config.backbone}", phases, folder=folder.path.name)
        plan = Plan(run_id, tuple(children), name, str(data.root), data.digest, config, threads)
        folder.write_plan(plan)
        return _Run(plan, folder, data, reporter).go(model)


def resume(run_id: str, scan: Callable[[Plan], Dataset], *, reporter: Reporter | None = None) -> Trained:
    """Take an unfinished run up where its last checkpoint is; ``scan`` reads the plan's data folder.

    Raises UnknownChoice when there is no such run, and TrainingError when its data have changed or another
    process is at it.
    """
    folder = run_folder.find(run_folder.default_root(), run_id)
    with folder.locked():
        plan = folder.read_plan()
        data = scan(plan)
        if data.digest != plan.digest:
            raise TrainingError(
                f"The data in {plan.data} have changed since the run {plan.run_id} began (digest "
                f"{data.digest[:12]}, not {plan.digest[:12]}); start a new run."
            )
        torch.set_num_threads(plan.threads)
        return _Run(plan, folder, data, reporter or Reporter()).go(_new_model(data, plan.config))


def find_rates(data: Dataset, config: TrainConfig, *, reporter: Reporter | None = None) -> list[RateTest]:
    """A learning rate range test for each phase, on an untrained head and the pretrained blocks."""
    reporter = reporter or Reporter()
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    model = _new_model(data, config)
    data = with_task(data, config.task)
    store = FeatureStore(default_folder(), memory_gb=config.cache_gb, disk_gb=config.cache_disk_gb)
    features = Features(model, data, config, store, reporter)
    tests = []
    for phase in config.phases:
        at_boundary = features.at(phase.train_from)
        objective = Objective(data.task)
        tests.append(find_rate(model, at_boundary, phase, objective, reporter, seed=config.seed))
        at_boundary.release()
    return tests


def end_abandoned(root: Path) -> None:
    """Mark the runs of dead processes as KILLED; they stay resumable."""
    for folder in run_folder.unfinished(root):
        if not folder.in_use:
            runs.end_abandoned(folder.path.name)


def _new_model(data: Dataset, config: TrainConfig) -> TransferModel:
    torch.manual_seed(config.seed)
    pretraining: Pretraining = "imagenet" if config.weights == "imagenet" else "none"
    task = with_task(data, config.task).task
    return TransferModel.create(config.backbone, data.classes, pretraining=pretraining, task=task)


class _Run:
    """One process's work on one run."""

    def __init__(self, plan: Plan, folder: RunFolder, data: Dataset, reporter: Reporter) -> None:
        self.plan, self.folder, self.config = plan, folder, plan.config
        self.data = with_task(data, plan.config.task)
        self.log = RunLog(plan.run_id, folder.outbox)
        self.system = surroundings.SystemMetrics()
        self.reporter = replace(reporter, step=self._heard(reporter.step))
        self.open_runs = [plan.run_id]

    def go(self, model: TransferModel) -> Trained:
        """The whole run, or what is left of it."""
        with self._ended():
            self.log.status("RUNNING")
            checkpoint = self.folder.read_checkpoint()
            if checkpoint is None:
                self._describe(model)
            before = forensics.weights_of(model)
            store = FeatureStore(
                default_folder(), memory_gb=self.config.cache_gb, disk_gb=self.config.cache_disk_gb
            )
            features = Features(model, self.data, self.config, store, self.reporter)
            baseline = linear_probe(features)
            if baseline is not None:
                self.log.metrics({"baseline_accuracy": baseline})
            self._phases(model, features, before, checkpoint)
            trained = self._finish(model, baseline)
        self.folder.remove()
        return trained

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """End the runs as what happened, and see that MLflow hears of it as far as it can."""
        try:
            yield
            self._end("FINISHED", _PATIENCE_S)
        except (KeyboardInterrupt, SystemExit):
            self._end_badly("KILLED")
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

    def _end_badly(self, status: str) -> None:
        # What cannot be said now is said when the run is resumed; the error on its way matters more.
        with suppress(TrackerUnavailable, TrainingError):
            self._end(status, _PATIENCE_WHEN_STOPPED_S)
        self.reporter.say(self._how_to_go_on())

    def _how_to_go_on(self) -> str:
        return f"The run is kept in {self.folder.path}; go on with: lucida train --resume {self.plan.run_id}"

    def _heard(self, step: Callable[[str, int, int], None]) -> Callable[[str, int, int], None]:
        def hear(what: str, done: int, total: int) -> None:
            step(what, done, total)
            if (sample := self.system.sample()) is not None:
                self.log.metrics(sample[1], step=sample[0])

        return hear

    # ------------------------------------------------------------ the beginning

    def _describe(self, model: TransferModel) -> None:
        """Parameters, data, versions and the varied views."""
        data = self.data
        self.log.params({"model_name": self.plan.name, "data": data.name, **self.config.flat()})
        self.log.tags(
            {
                "dataset.digest": data.digest,
                **surroundings.versions(),
                **surroundings.git_tags(Path.cwd()),
            }
        )
        self.log.dataset(data)
        self.log.file(_json(_described(data)), "dataset.json")
        self.log.file(recipes.to_toml(self.config), "config.toml")
        self.log.file(surroundings.environment(), "environment.txt")
        self.log.picture(_augmented_sheet(model, data, self.config), "augmented_samples.png")

    # ------------------------------------------------------------ the phases

    def _phases(
        self,
        model: TransferModel,
        features: Features,
        before: dict[str, torch.Tensor],
        checkpoint: Checkpoint | None,
    ) -> None:
        done = list(checkpoint.done) if checkpoint is not None else []
        state = checkpoint.state if checkpoint is not None else None
        probes = forensics.choose_probes(self.data)
        objective = self._objective(features)
        phases = list(zip(self.config.phases, self.plan.phase_runs, strict=True))
        for number, (phase, run_id) in enumerate(phases[len(done) :], start=len(done) + 1):
            self.open_runs.append(run_id)
            self.log.status("RUNNING", run_id=run_id)
            if state is not None:
                self._take_up(model, state, run_id)
            at_boundary = features.at(phase.train_from)
            result = run_phase(
                model,
                at_boundary,
                phase,
                objective,
                replace(self.reporter, epoch=partial(self._epoch_news, run_id)),
                seed=self.config.seed + number,
                state=state,
                save=lambda state: self.folder.write_checkpoint(Checkpoint(done, state)),
            )
            at_boundary.release()
            state = None
            done.append(DonePhase(result.epochs, forensics.snapshot(model, probes, phase.name, before)))
            self._log_phase(result, done[-1].after, run_id)
            self.log.status("FINISHED", run_id=run_id)
            self.open_runs.remove(run_id)
        self._log_story(model, probes, done)

    def _take_up(self, model: TransferModel, state: PhaseState, run_id: str) -> None:
        """Put back what earlier phases trained, before features are raised to this phase's boundary."""
        prefix = "model."
        kept = {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
        model.load_state_dict(kept, strict=False)
        # The last epoch's news may have been lost with the process; told twice it stays one.
        self._log_epoch(state.epochs[-1], run_id)

    def _objective(self, features: Features) -> Objective:
        if self.config.class_weights == "none":
            return Objective(self.data.task)
        weights = balanced_weights(self.data.task, features.targets)
        self.log.params(
            {f"class_weight.{n}": f"{float(w):.4g}" for n, w in zip(self.data.classes, weights, strict=True)}
        )
        return Objective(self.data.task, class_weights=weights)

    def _epoch_news(self, run_id: str, epoch: Epoch) -> None:
        self._log_epoch(epoch, run_id)
        self.reporter.epoch(epoch)

    def _log_epoch(self, epoch: Epoch, run_id: str) -> None:
        values = {"val_loss": epoch.val_loss, "val_accuracy": epoch.val_accuracy}
        if epoch.train_loss is not None:
            values["train_loss"] = epoch.train_loss
        values |= {f"rate.{name}": rate for name, rate in epoch.rates.items()}
        self.log.metrics(values, step=epoch.number, run_id=run_id, timestamp_ms=epoch.ended_ms)

    def _log_phase(self, result: PhaseResult, after: forensics.Snapshot, run_id: str) -> None:
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

    def _log_story(self, model: TransferModel, probes: list[Sample], done: list[DonePhase]) -> None:
        """Curves, the probes' evidence phase by phase, and how far weights and maps moved."""
        snapshots = [each.after for each in done]
        shifted = forensics.map_movement(snapshots)
        story = {
            "probes": [sample.name for sample in probes],
            "phases": [asdict(each) for each in snapshots],
            "evidence_moved": shifted,
        }
        names = [each.phase for each in snapshots]
        self.log.picture(plots.history([each.epochs for each in done]), "history.png")
        self.log.picture(forensics.sheet(model, probes, snapshots), "forensics/probes.png")
        self.log.picture(
            plots.movement(names, [each.moved for each in snapshots]), "forensics/weights_moved.png"
        )
        self.log.file(_json(story), "forensics/forensics.json")
        if shifted:
            ended = done[-1].epochs[-1].ended_ms
            self.log.metrics({f"evidence_moved.{k}": v for k, v in shifted.items()}, timestamp_ms=ended)

    # ------------------------------------------------------------ the end

    def _finish(self, model: TransferModel, baseline: float | None) -> Trained:
        """Calibrate, evaluate, save the bundle, review and register."""
        evaluations = self._evaluate(model)
        metrics = {
            f"{split}_{key}": value
            for split, each in evaluations.items()
            for key, value in each.metrics.items()
        }
        if baseline is not None:
            metrics["baseline_accuracy"] = baseline
        metrics["temperature"] = model.scoring.temperature
        ended = self.log.metrics(metrics)
        self.log.metrics({"peak_memory_mb": surroundings.peak_memory_mb()})
        with tempfile.TemporaryDirectory() as aside:
            folder = Path(aside) / "bundle"
            digest = bundle.save(
                model,
                folder,
                name=self.plan.name,
                run_id=self.plan.run_id,
                metrics=metrics,
                dataset=self.data.summary(),
                training=self.config.flat(),
            )
            checked = bundle.load(folder)
            log_review(
                checked.model,
                list(evaluations.values()),
                self.data.train,
                name=self.plan.name,
                run_id=self.plan.run_id,
                digest=digest,
                baseline=baseline,
                keep=self.log.file,
                keep_table=self.log.table,
                reporter=self.reporter,
            )
            self.log.flush(_PATIENCE_S)
            registered = registry.register(
                folder, name=self.plan.name, run_id=self.plan.run_id, metrics=metrics, timestamp_ms=ended
            )
        return Trained(
            run_id=self.plan.run_id,
            name=self.plan.name,
            version=str(registered.version),
            digest=digest,
            evaluations=evaluations,
            baseline=baseline,
            peak_memory_mb=surroundings.peak_memory_mb(),
        )

    def _evaluate(self, model: TransferModel) -> dict[str, Evaluation]:
        """Judge the held-out splits with the temperature that fits the validation split."""
        raw = {
            split: evaluate(
                model,
                self.data.samples(split),
                split,
                report=lambda done, total: self.reporter.step("evaluating", done, total),
            )
            for split in ("val", "test")
            if self.data.samples(split)
        }
        model.scoring = Scoring(model.scoring.task, fit_temperature(raw["val"], model.scoring))
        judged = {}
        for split, each in raw.items():
            samples = self.data.samples(split)
            judged[split] = judge(self.data.classes, model.scoring, samples, split, each.logits, each.pooled)
            judged[split].metrics["uncalibrated_ece"] = each.metrics["ece"]
            judged[split].metrics["uncalibrated_loss"] = each.metrics["loss"]
            title = (
                f"{split}: calibration error {each.metrics['ece']:.3f} → {judged[split].metrics['ece']:.3f}"
            )
            drawn = plots.reliability(each.reliability, judged[split].reliability, title=title)
            self.log.picture(drawn, f"reliability_{split}.png")
            self.log.picture(plots.confusion(judged[split]), f"confusion_{split}.png")
            self.log.file(_json([asdict(row) for row in judged[split].table]), f"classes_{split}.json")
        return judged


def _described(data: Dataset) -> dict[str, object]:
    return {
        **data.summary(),
        "classes": data.classes,
        "skipped_files": [{"name": item.name, "reason": item.reason} for item in data.skipped],
        "pictures_on_both_sides": [list(pair) for pair in data.shared],
    }


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False)


def _augmented_sheet(model: TransferModel, data: Dataset, config: TrainConfig) -> PIL.Image.Image:
    """A few training pictures, each as the model will see it in service and in three varied views."""
    augmenter = Augmenter(model.geometry, config.augmentation, seed=config.seed)
    by_class: dict[tuple[int, ...], Sample] = {}
    for sample in data.train:
        by_class.setdefault(sample.labels, sample)
    tiles = [
        Tile(
            augmenter.picture(sample, view),
            " + ".join(data.classes[label] for label in labels) or "none",
            "as served" if view == 0 else f"view {view}",
        )
        for labels, sample in list(by_class.items())[:6]
        for view in range(4)
    ]
    return contact_sheet(tiles, columns=8, side=150, title=f"Training views of {data.name}")
