"""The trained model judged on the held-out splits, with the temperature that fits the validation split."""

from __future__ import annotations

import json
from dataclasses import asdict

from models.networks.scoring import Scoring
from models.networks.transfer_model import TransferModel
from models.progress import Progress
from pipelines.data.dataset import Dataset
from pipelines.evaluation.classification import Evaluation, evaluate, evaluate_logits, fit_temperature
from pipelines.evaluation.plots import plot_confusion, plot_reliability
from pipelines.tracking.runs import RunLogger


def evaluate_splits(
    model: TransferModel, data: Dataset, log: RunLogger, progress: Progress
) -> dict[str, Evaluation]:
    """Calibrate the model on the validation split, evaluate it on each held-out split, and log the plots."""
    raw = {
        split: evaluate(model, data.samples(split), split, progress=progress)
        for split in ("val", "test")
        if data.samples(split)
    }
    model.scoring = Scoring(model.scoring.task, fit_temperature(raw["val"], model.scoring))
    calibrated = {}
    for split, before in raw.items():
        after = evaluate_logits(data.classes, model.scoring, data.samples(split), split, before.logits)
        after.metrics["uncalibrated_ece"] = before.metrics["ece"]
        after.metrics["uncalibrated_loss"] = before.metrics["loss"]
        calibrated[split] = after
        _log_evaluation(before, after, log)
    return calibrated


def _log_evaluation(before: Evaluation, after: Evaluation, log: RunLogger) -> None:
    split = after.split
    errors = f"{before.metrics['ece']:.3f} → {after.metrics['ece']:.3f}"
    diagram = plot_reliability(
        before.reliability, after.reliability, title=f"{split}: calibration error {errors}"
    )
    log.image(diagram, f"reliability_{split}.png")
    log.image(plot_confusion(after), f"confusion_{split}.png")
    rows = [asdict(row) for row in after.table]
    log.file(json.dumps(rows, indent=2, ensure_ascii=False), f"classes_{split}.json")
