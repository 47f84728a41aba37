"""The end of a run, its model trained here or adopted: evaluation, bundle, review, registration."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from models.bundle import load_bundle, save_bundle
from models.explainer import Explainer
from models.networks.batchnorm_folding import inference_copy
from models.networks.transfer_model import TransferModel
from pipelines.data.dataset import Dataset
from pipelines.data.visibility import describe_view, seen_shares
from pipelines.errors import TrainingError
from pipelines.evaluation.classification import Evaluation
from pipelines.evaluation.data_issues import DATA_ISSUES_FILE, DataIssues
from pipelines.evaluation.explanations import (
    LocalizationResult,
    check_methods,
    localization_to_json,
    measure_localization,
)
from pipelines.evaluation.method_choice import choose_methods
from pipelines.evaluation.phase_snapshots import choose_probes
from pipelines.evaluation.reference import measure_reference
from pipelines.progress import Reporter
from pipelines.reports.review import log_review
from pipelines.reports.samples import log_samples
from pipelines.reports.summary import summarize_evaluations
from pipelines.tracking.registry import register_version
from pipelines.tracking.runs import RunLogger
from pipelines.training.calibrated_evaluation import evaluate_splits
from pipelines.training.environment import peak_memory_mb
from pipelines.training.outcome import PhaseOutcome, TrainedModel, describe_outcome
from pipelines.training.run_log import to_json

PATIENCE_S, PATIENCE_WHEN_STOPPED_S = 120.0, 5.0
"""How long a finished, and how long an interrupted run waits for MLflow."""
_BENCHMARK_IMAGES = 48


@dataclass(frozen=True)
class RunCompletion:
    """The end of one run, whose model is there."""

    name: str
    run_id: str
    data: Dataset
    log: RunLogger
    reporter: Reporter
    folder: Path
    """Where the bundle is made."""
    settings: Mapping[str, str | int | float | bool]
    """How the model came about, for its bundle."""
    sanity: str
    """Which methods are checked: "all", those that read a "block", or "none"."""

    def complete(
        self,
        model: TransferModel,
        *,
        baseline: float | None,
        issues: DataIssues,
        phases: list[PhaseOutcome],
        ended_ms: int,
    ) -> TrainedModel:
        """Calibrate, evaluate, save the bundle, review and register.

        Metrics get the time at which the last epoch ended, so that a resumed run that logs them again does
        not double them.
        """
        evaluations = evaluate_splits(model, self.data, self.log, self.reporter.step)
        frozen = inference_copy(model)
        located = self._locate(frozen)
        metrics = _metrics(evaluations, located) | {"temperature": model.scoring.temperature}
        if baseline is not None:
            metrics["baseline_accuracy"] = baseline
        self.log.metrics(metrics, timestamp_ms=ended_ms)
        sanity = check_methods(model, choose_probes(self.data), self.sanity, progress=self.reporter.step)
        if sanity is not None:
            self.log.file(to_json(sanity.to_dict()), "explanations/sanity.json")
        probes = choose_probes(self.data, _BENCHMARK_IMAGES)
        best = choose_methods(Explainer(frozen), probes, self.sanity, progress=self.reporter.step)
        if best:
            self.log.file(to_json([choice.to_dict() for choice in best]), "explanations/best_methods.json")
        reference = measure_reference(Explainer(frozen), self.data.val, progress=self.reporter.step)
        self.log.tags({"peak_memory_mb": f"{peak_memory_mb():.0f}"})
        log_samples(evaluations["val"], self.log.file)
        self.log.file(issues.to_json(self.data), DATA_ISSUES_FILE)
        trained = TrainedModel(
            run_id=self.run_id,
            name=self.name,
            evaluations=evaluations,
            phases=phases,
            baseline=baseline,
            view=describe_data_view(model, self.data),
            skipped=len(self.data.skipped),
            barred=list(sanity.disabled()) if sanity is not None else [],
            peak_memory_mb=peak_memory_mb(),
        )
        with self._bundle_folder() as folder:
            digest = save_bundle(
                model,
                folder,
                name=self.name,
                run_id=self.run_id,
                metrics=metrics,
                dataset=self.data.summary(),
                training=self.settings,
                sanity=sanity,
                reference=reference,
                best_methods=best,
            )
            checked = load_bundle(folder, device=model.device).model
            self._review(checked, trained, located, issues, digest)
            version = self._register(folder, trained, metrics, ended_ms)
        return replace(trained, version=version, digest=digest)

    def _review(
        self,
        model: TransferModel,
        trained: TrainedModel,
        located: list[LocalizationResult],
        issues: DataIssues,
        digest: str,
    ) -> None:
        """Make the review with the model as it was saved, and wait until MLflow has all that was said."""
        log_review(
            model,
            list(trained.evaluations.values()),
            self.data,
            name=self.name,
            run_id=self.run_id,
            digest=digest,
            baseline=trained.baseline,
            keep=self.log.file,
            keep_table=self.log.table,
            reporter=self.reporter,
            located=[result for result in located if result.split == "val"],
            issues=issues,
        )
        self.log.flush(PATIENCE_S)

    def _register(self, folder: Path, trained: TrainedModel, metrics: dict[str, float], ended_ms: int) -> str:
        self.reporter.step("registering", 0, 1)
        summary = summarize_evaluations(list(trained.evaluations.values()), trained.baseline)
        registered = register_version(
            folder,
            name=self.name,
            run_id=self.run_id,
            metrics=metrics,
            timestamp_ms=ended_ms,
            description=describe_outcome(trained, summary),
        )
        self.reporter.step("registering", 1, 1)
        return str(registered.version)

    @contextmanager
    def _bundle_folder(self) -> Iterator[Path]:
        """Yield a new folder for the bundle beside the checkpoint; what an interrupted attempt left goes
        first.
        """
        folder = self.folder / "bundle"
        shutil.rmtree(folder, ignore_errors=True)
        try:
            yield folder
        except OSError as error:
            raise TrainingError(
                f"The run could not be finished in {self.folder}: {error.strerror or error}. "
                "The checkpoint is whole."
            ) from error

    def _locate(self, model: TransferModel) -> list[LocalizationResult]:
        """Return where the evidence lies against the data's masks and boxes; nothing without them."""
        located = [
            result
            for split in ("val", "test")
            for result in measure_localization(model, self.data, split, progress=self.reporter.step)
        ]
        if located:
            self.log.file(localization_to_json(located), "explanations/localisation.json")
        return located


def _metrics(
    evaluations: Mapping[str, Evaluation], located: Sequence[LocalizationResult]
) -> dict[str, float]:
    """Return the figures of all splits, by the names that they have in MLflow."""
    metrics = {
        f"{split}_{key}": value
        for split, evaluation in evaluations.items()
        for key, value in evaluation.metrics.items()
    }
    return metrics | {key: value for result in located for key, value in result.metrics().items()}


def describe_data_view(model: TransferModel, data: Dataset) -> str:
    """Return a sentence on how much of the pictures the model sees."""
    samples = (*data.train, *data.val, *data.test)
    return describe_view(model.geometry, seen_shares(model.geometry, samples))
