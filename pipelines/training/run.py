"""The work of one training run: phases with a checkpoint after each epoch, evaluation, bundle, review,
registry.

Everything said about it goes through an outbox, so MLflow may be away while it trains.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial

import torch

from models.networks.transfer_model import TransferModel
from models.progress import Progress
from pipelines.data.dataset import Dataset, with_task
from pipelines.errors import LossNotFinite, TrackerUnavailable, TrainingError
from pipelines.evaluation.phase_snapshots import (
    choose_probes,
    flatten_weights,
    take_snapshot,
)
from pipelines.progress import EpochResult, Reporter
from pipelines.tracking.runs import RunLogger
from pipelines.training.checkpoint import FinishedPhase, RunFolder, RunManifest, TrainingCheckpoint
from pipelines.training.completion import (
    PATIENCE_S,
    PATIENCE_WHEN_STOPPED_S,
    RunCompletion,
    describe_data_view,
)
from pipelines.training.environment import (
    SystemMetrics,
)
from pipelines.training.feature_cache import FeatureCache, default_cache_folder
from pipelines.training.features import Features
from pipelines.training.linear_probe import fit_linear_probe, inspect_by_features
from pipelines.training.losses import Objective, make_objective
from pipelines.training.outcome import TrainedModel, phase_outcomes
from pipelines.training.run_log import RunRecord
from pipelines.training.trainer import PhaseState, run_phases
from pipelines.training.whole_run import WholeRun


class TrainingRun:
    """A run at work in this process, new or resumed."""

    def __init__(self, plan: RunManifest, folder: RunFolder, data: Dataset, reporter: Reporter) -> None:
        self.plan, self.folder, self.config = plan, folder, plan.config
        self.data = with_task(data, plan.config.task)
        self.log = RunLogger(plan.run_id, folder.outbox)
        self.record = RunRecord(plan, self.data, self.log)
        self.system = SystemMetrics(plan.started_ms)
        step = self._with_system_metrics(reporter.step)
        self.reporter = replace(reporter, step=WholeRun(self.config, self.data, step))
        self.open_runs = [plan.run_id]

    def go(self, model: TransferModel) -> TrainedModel:
        """Train: the whole run, or what is left of it."""
        with self._ended():
            self.log.status("RUNNING")
            for sentence in (*model.notes, describe_data_view(model, self.data)):
                self.reporter.say(sentence)
            checkpoint = self.folder.read_checkpoint()
            if checkpoint is None:
                self.record.describe(model)
            before = flatten_weights(model)
            store = FeatureCache(
                default_cache_folder(), memory_gb=self.config.cache_gb, disk_gb=self.config.cache_disk_gb
            )
            features = Features(model, self.data, self.config, store, self.reporter)
            baseline = fit_linear_probe(features)
            issues = inspect_by_features(features, self.data, self.reporter)
            done = self._phases(model, features, before, checkpoint)
            trained = self._completion().complete(
                model,
                baseline=baseline,
                issues=issues,
                phases=phase_outcomes(done),
                ended_ms=done[-1].epochs[-1].ended_ms,
            )
        self.folder.remove()
        return trained

    def _completion(self) -> RunCompletion:
        return RunCompletion(
            name=self.plan.name,
            run_id=self.plan.run_id,
            data=self.data,
            log=self.log,
            reporter=self.reporter,
            folder=self.folder.path,
            settings=self.config.flat(),
            sanity=self.config.sanity,
        )

    @contextmanager
    def _ended(self) -> Iterator[None]:
        """End the runs with the status that fits what happened, and deliver it to MLflow if possible."""
        try:
            yield
            self._end("FINISHED", PATIENCE_S)
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
            self._end(status, PATIENCE_WHEN_STOPPED_S)
        self.reporter.say(advice or self._how_to_go_on())

    def _how_to_go_on(self) -> str:
        return f"The run is kept in {self.folder.path}; go on with: lucida train --resume {self.plan.run_id}"

    def _with_system_metrics(self, step: Progress) -> Progress:
        def step_and_sample(what: str, done: int, total: int) -> None:
            step(what, done, total)
            if (sample := self.system.sample()) is not None:
                self.log.metrics(sample[1], step=sample[0])

        return step_and_sample

    # ------------------------------------------------------------ the phases

    def _phases(
        self,
        model: TransferModel,
        features: Features,
        before: dict[str, torch.Tensor],
        checkpoint: TrainingCheckpoint | None,
    ) -> list[FinishedPhase]:
        """Train what is left and return all phases."""
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
            self.record.phase(result, done[-1].after, run_id)
            self.log.status("FINISHED", run_id=run_id)
            self.open_runs.remove(run_id)
            if result.best.number == 0:
                self.reporter.say(
                    f"Phase {result.phase.name} did not lower the validation loss; "
                    "the state before it is kept."
                )
        self.record.story(model, probes, done, done[-1].epochs[-1].ended_ms)
        return done

    def _take_up(self, model: TransferModel, state: PhaseState, run_id: str) -> None:
        """Put back what earlier phases trained, before features are raised to this phase's boundary."""
        prefix = "model."
        model_state = {k.removeprefix(prefix): v for k, v in state.tensors.items() if k.startswith(prefix)}
        model.load_state_dict(model_state, strict=False)
        # The last epoch's news may have been lost with the process; told twice it stays one.
        self.record.epoch(state.epochs[-1], run_id)

    def _objective(self, features: Features) -> Objective:
        objective = make_objective(self.data.task, self.config.class_weights, features.targets)
        if objective.weights is not None:
            named = zip(self.data.classes, objective.weights.tolist(), strict=True)
            # Classes may have any name, a tracker's parameters may not.
            self.log.params({"class_weights.values": json.dumps({name: round(w, 4) for name, w in named})})
        return objective

    def _epoch_news(self, run_id: str, epoch: EpochResult) -> None:
        self.record.epoch(epoch, run_id)
        self.reporter.epoch(epoch)
