"""One training run from a folder of pictures to a registered model version, with its story in MLflow."""

from __future__ import annotations

import io
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from models import bundle, images
from models.backbones import Pretraining
from models.render.contact_sheet import Tile, contact_sheet
from models.transfer import TransferModel
from pipelines import tracking
from pipelines.config import TrainConfig
from pipelines.data import Dataset, Sample
from pipelines.evaluate import Evaluation, evaluate
from pipelines.finetune import Augmenter, Features, Reporter, run_phase
from pipelines.review.log import log_review


@dataclass(frozen=True, slots=True)
class Trained:
    """What a run came to."""

    run_id: str
    name: str
    version: str
    digest: str
    evaluations: dict[str, Evaluation]


def train(data: Dataset, config: TrainConfig, *, name: str, reporter: Reporter | None = None) -> Trained:
    """Fine-tune in phases, evaluate, save the bundle, log everything and register the model version.

    Deterministic on one machine for one config and data set. Raises the project's errors; a run that fails is
    marked FAILED in MLflow, one that is interrupted KILLED.
    """
    reporter = reporter or Reporter()
    tracking.check_name(name)
    torch.manual_seed(config.seed)
    if config.threads:
        torch.set_num_threads(config.threads)
    # Weights that are missing should be known before a run is opened.
    pretraining: Pretraining = "imagenet" if config.weights == "imagenet" else "none"
    model = TransferModel.create(config.backbone, data.classes, pretraining=pretraining)
    with tracking.run(f"{name} {config.backbone}") as run_id:
        tracking.log_setup({"model_name": name, "data": data.name, **config.flat()}, data)
        tracking.log_picture(_augmented_sheet(model, data, config), "augmented_samples.png")
        _run_phases(model, data, config, reporter)
        evaluations = _evaluate(model, data, reporter)
        metrics = _named_metrics(evaluations)
        tracking.log_metrics(metrics)
        for each in evaluations.values():
            tracking.log_picture(confusion_picture(each), f"confusion_{each.split}.png")
        with tempfile.TemporaryDirectory() as aside:
            folder = Path(aside) / "bundle"
            digest = bundle.save(
                model,
                folder,
                name=name,
                run_id=run_id,
                metrics=metrics,
                dataset=data.summary(),
                training=config.flat(),
            )
            checked = bundle.load(folder)
            log_review(
                checked.model,
                list(evaluations.values()),
                name=name,
                run_id=run_id,
                digest=digest,
                reporter=reporter,
            )
            registered = tracking.log_model(folder, name=name, metrics=metrics)
    return Trained(run_id, name, str(registered.version), digest, evaluations)


def confusion_picture(evaluation: Evaluation) -> PIL.Image.Image:
    """The confusion matrix: counts in each cell, shaded by the share of the true class."""
    counts = evaluation.confusion.numpy()
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(4.0, 0.75 * len(counts) + 2.2)
    figure = Figure(figsize=(side + 0.8, side), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Purples", vmin=0, vmax=1)
    axes.set_xticks(range(len(counts)), evaluation.classes, rotation=40, ha="right")
    axes.set_yticks(range(len(counts)), evaluation.classes)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    axes.set_title(
        f"{evaluation.split}: accuracy {evaluation.metrics['accuracy']:.3f} of {len(evaluation.judged)}",
        fontsize=11,
    )
    for row, col in np.ndindex(*counts.shape):
        if counts[row, col]:
            axes.text(col, row, str(int(counts[row, col])), ha="center", va="center", fontsize=10,
                      color="white" if share[row, col] > 0.55 else "#201e28")  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return images.decode(buffer.getvalue()).pil


def _run_phases(model: TransferModel, data: Dataset, config: TrainConfig, reporter: Reporter) -> None:
    """Train each phase inside a child run of its own."""
    features = Features(model, data, config, reporter)
    for number, phase in enumerate(config.phases, start=1):
        with tracking.run(f"{number} {phase.name}", nested=True):
            tracking.log_phase(run_phase(model, features, phase, reporter, seed=config.seed + number))


def _evaluate(model: TransferModel, data: Dataset, reporter: Reporter) -> dict[str, Evaluation]:
    return {
        split: evaluate(
            model,
            data.samples(split),
            split,
            report=lambda done, total: reporter.step("evaluating", done, total),
        )
        for split in ("val", "test")
        if data.samples(split)
    }


def _named_metrics(evaluations: dict[str, Evaluation]) -> dict[str, float]:
    return {
        f"{split}_{name}": value
        for split, each in evaluations.items()
        for name, value in each.metrics.items()
    }


def _augmented_sheet(model: TransferModel, data: Dataset, config: TrainConfig) -> PIL.Image.Image:
    """A few training pictures, each as the model will see it in service and in three varied views."""
    augmenter = Augmenter(model.geometry, config.augmentation, seed=config.seed)
    by_class: dict[int, Sample] = {}
    for sample in data.train:
        by_class.setdefault(sample.label, sample)
    tiles = [
        Tile(
            augmenter.picture(sample, view),
            data.classes[sample.label],
            "as served" if view == 0 else f"view {view}",
        )
        for sample in list(by_class.values())[:6]
        for view in range(4)
    ]
    return contact_sheet(tiles, columns=8, side=150, title=f"Training views of {data.name}")
