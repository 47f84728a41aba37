"""One training run from a folder of images to a registered model version, with its story in MLflow.

A run that is interrupted or cut off from MLflow is taken up again by :func:`resume_training`: at most the
epoch in progress is lost, and the model comes out the same to the bit.
"""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from models.devices import resolve_device
from models.networks.backbone import Pretraining
from models.networks.transfer_model import TransferModel
from pipelines.config.schema import TrainConfig
from pipelines.data.dataset import Dataset, with_task
from pipelines.errors import TrainingError
from pipelines.progress import Reporter
from pipelines.tracking.registry import check_name
from pipelines.tracking.runs import check_run_exists, open_runs, terminate_abandoned
from pipelines.training.checkpoint import (
    RunFolder,
    RunManifest,
    default_runs_root,
    find_run_folder,
    list_run_folders,
    unfinished_runs,
)
from pipelines.training.feature_cache import FeatureCache, default_cache_folder
from pipelines.training.features import Features
from pipelines.training.losses import Objective
from pipelines.training.lr_finder import LrRangeTest, run_lr_range_test
from pipelines.training.outcome import TrainedModel
from pipelines.training.run import TrainingRun


def train_model(
    data: Dataset, config: TrainConfig, *, name: str, reporter: Reporter | None = None
) -> TrainedModel:
    """Fine-tune in phases, evaluate, save the bundle, log everything and register the model version.

    Deterministic on one machine for one config and data set. Raises the project's errors; a run that fails is
    marked FAILED in MLflow, one that is interrupted KILLED.
    """
    reporter = reporter or Reporter()
    check_name(name)
    config = replace(config, task=with_task(data, config.task).task)
    threads = config.threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    # Weights that are missing should be known before a run is opened.
    model = _new_model(data, config)
    root = default_runs_root()
    end_abandoned(root)
    folder = RunFolder(root / uuid.uuid4().hex)
    with folder.locked():
        plan = _open(folder, data, config, name, threads)
        return TrainingRun(plan, folder, data, reporter).go(model)


def train_again(
    data: Dataset, config: TrainConfig, *, name: str, reporter: Reporter | None = None
) -> TrainedModel:
    """Train a run's recipe once more with another seed, as a version of a model of its own."""
    return train_model(data, replace(config, seed=config.seed + 1000), name=name, reporter=reporter)


def _open(folder: RunFolder, data: Dataset, config: TrainConfig, name: str, threads: int) -> RunManifest:
    """Open the runs and write the plan: both, or nothing stays open."""
    phases = [phase.name for phase in config.phases]
    try:
        # Two runs of one model should be told apart in a list of names.
        title = (
            f"{name} {config.backbone} {config.preset} seed {config.seed} {time.strftime('%d %b %H:%M:%S')}"
        )
        run_id, children = open_runs(title, phases, folder=folder.path.name)
        plan = RunManifest(
            run_id=run_id,
            phase_runs=tuple(children),
            name=name,
            data=str(data.root),
            data_name=data.name,
            digest=data.digest,
            order=_order_digest(data),
            config=config,
            threads=threads,
            started_ms=int(time.time() * 1000),
        )
        folder.write_plan(plan)
    except BaseException:
        # A tracker that is away is asked again by the next training, which finds the folder.
        if terminate_abandoned(folder.path.name):
            folder.remove()
        raise
    return plan


def resume_training(
    run_id: str,
    scan: Callable[[RunManifest], Dataset],
    *,
    device: str | None = None,
    reporter: Reporter | None = None,
) -> TrainedModel:
    """Take an unfinished run up where its last checkpoint is; ``scan`` reads the plan's data folder.

    It goes on where it was begun, or on another ``device``, which rounds otherwise.

    Raises UnknownChoice when there is no such run, and TrainingError when its data have changed or another
    process is at it.
    """
    folder = find_run_folder(default_runs_root(), run_id)
    with folder.locked():
        plan = folder.read_plan()
        plan = replace(plan, config=replace(plan.config, device=device or plan.config.device))
        data = replace(scan(plan), name=plan.data_name)
        if data.digest != plan.digest or _order_digest(data) != plan.order:
            what = "changed" if data.digest != plan.digest else "been renamed or put in another order"
            raise TrainingError(
                f"The data in {data.root} have {what} since the run {plan.run_id} began (digest "
                f"{data.digest[:12]}, then {plan.digest[:12]}); start a new run."
            )
        check_run_exists(plan.run_id)
        torch.set_num_threads(plan.threads)
        return TrainingRun(plan, folder, data, reporter or Reporter()).go(_new_model(data, plan.config))


def discard_run(run_id: str) -> None:
    """Delete what an unfinished run keeps; its runs are marked KILLED if nobody did.

    Raises UnknownChoice when there is no such run, and TrainingError while a process works on it.
    """
    folder = find_run_folder(default_runs_root(), run_id)
    with folder.locked():
        terminate_abandoned(folder.path.name)
        folder.remove()


def find_rates(data: Dataset, config: TrainConfig, *, reporter: Reporter | None = None) -> list[LrRangeTest]:
    """Run a learning rate range test for each phase, on an untrained head and the pretrained blocks."""
    reporter = reporter or Reporter()
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    model = _new_model(data, config)
    data = with_task(data, config.task)
    store = FeatureCache(default_cache_folder(), memory_gb=config.cache_gb, disk_gb=config.cache_disk_gb)
    features = Features(model, data, config, store, reporter)
    tests = []
    for phase in config.phases:
        at_boundary = features.at(phase.train_from)
        objective = Objective(data.task)
        tests.append(run_lr_range_test(model, at_boundary, phase, objective, reporter, seed=config.seed))
        at_boundary.release()
    return tests


def end_abandoned(root: Path) -> None:
    """Mark the runs of dead processes as KILLED; those that had a plan stay resumable."""
    resumable = [folder.path for folder, _ in unfinished_runs(root).values()]
    for folder in list_run_folders(root):
        if not folder.in_use and terminate_abandoned(folder.path.name) and folder.path not in resumable:
            folder.remove()


def _order_digest(data: Dataset) -> str:
    """Return digest of the images that training reads, in their order."""
    listed = [f"{sample.sha256} {sample.labels}" for sample in (*data.train, *data.val)]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()


def _new_model(data: Dataset, config: TrainConfig) -> TransferModel:
    device = resolve_device(config.device)
    torch.manual_seed(config.seed)
    pretraining: Pretraining | Path = Path(config.weights)
    if config.weights in ("imagenet", "none"):
        pretraining = "imagenet" if config.weights == "imagenet" else "none"
    task = with_task(data, config.task).task
    model = TransferModel.create(
        config.backbone, data.classes, pretraining=pretraining, task=task, view=config.view
    )
    return model.to(device)
