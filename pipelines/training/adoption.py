"""A model that was trained elsewhere as a tracked run: evaluated, checked, reviewed and registered."""

from __future__ import annotations

import hashlib
import os
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from models.bundle import save_bundle
from models.devices import CPU, to_host
from models.images.geometry import Geometry
from models.networks.adoption import Adopted
from models.networks.transfer_model import TransferModel
from pipelines.data.dataset import Dataset, match_classes
from pipelines.errors import TrackerUnavailable
from pipelines.evaluation.classification import evaluate
from pipelines.evaluation.data_issues import embed_by, inspect_data
from pipelines.progress import Reporter
from pipelines.tracking.registry import check_name, register_version
from pipelines.tracking.runs import RunLogger, open_runs
from pipelines.training.checkpoint import RunFolder, default_runs_root
from pipelines.training.completion import (
    PATIENCE_S,
    PATIENCE_WHEN_STOPPED_S,
    RunCompletion,
    describe_data_view,
)
from pipelines.training.environment import git_tags, package_versions
from pipelines.training.run_log import to_json

_HALF = (0.5, 0.5, 0.5)
_NORMALISATIONS = {
    "ImageNet's (mean 0.485 0.456 0.406, std 0.229 0.224 0.225)": (
        (0.485, 0.456, 0.406),
        (0.229, 0.224, 0.225),
    ),
    "mean 0.5, std 0.5": (_HALF, _HALF),
    "none (mean 0, std 1)": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
_MOST_TRIED = 200
"""Pictures by which normalisations are compared."""
_SIGNIFICANT = 0.01


@dataclass(frozen=True, slots=True)
class Adoption:
    """A model that was registered."""

    run_id: str
    name: str
    version: str
    accuracy: float | None
    """On the validation split; None without data."""
    notes: tuple[str, ...]


def adopt_model(
    adopted: Adopted,
    *,
    source: str,
    name: str,
    data: Dataset | None,
    reporter: Reporter,
    sanity: str = "all",
    device: torch.device = CPU,
) -> Adoption:
    """Register an adopted model by a run of its own; with labelled data it is calibrated and judged like a
    trained one, on the device.

    Raises DataError for data of other classes; a run that fails is marked FAILED in MLflow.
    """
    check_name(name)
    model = adopted.model.to(device)
    torch.set_num_threads(os.cpu_count() or 1)
    data = match_classes(data, model.classes) if data is not None else None
    notes = list(adopted.notes)
    if data is not None:
        notes += compare_normalisations(model, data)
    for note in notes:
        reporter.say(note)
    folder = RunFolder(default_runs_root() / uuid.uuid4().hex)
    with folder.locked():
        title = f"{name} adopted {source} {time.strftime('%d %b %H:%M:%S')}"
        run_id, _ = open_runs(title, [], folder=folder.path.name)
        log = RunLogger(run_id, folder.outbox)
        try:
            _describe(log, model, source, name, notes)
            if data is None:
                version, accuracy = _register_alone(log, model, source, name, folder.path), None
            else:
                log.tags({"dataset.digest": data.digest})
                log.dataset(data)
                log.file(to_json(data.describe()), "dataset.json")
                reporter.say(describe_data_view(model, data))
                completion = RunCompletion(
                    name=name, run_id=run_id, data=data, log=log, reporter=reporter, folder=folder.path,
                    settings={"adopted": source}, sanity=sanity,
                )  # fmt: skip
                issues = inspect_data(data, embed_by(model, data, reporter.step), progress=reporter.step)
                trained = completion.complete(
                    model, baseline=None, issues=issues, phases=[], ended_ms=_now_ms()
                )
                version, accuracy = trained.version, trained.evaluations["val"].metrics["accuracy"]
            log.status("FINISHED")
            log.flush(PATIENCE_S)
        except BaseException as error:
            log.status("FAILED" if isinstance(error, Exception) else "KILLED")
            # The error on its way matters more than a tracker that is away.
            with suppress(TrackerUnavailable):
                log.flush(PATIENCE_WHEN_STOPPED_S)
            raise
        finally:
            log.close()
    folder.remove()
    return Adoption(run_id, name, version, accuracy, tuple(notes))


def compare_normalisations(model: TransferModel, data: Dataset) -> list[str]:
    """Return a sentence for each usual normalisation that scores better than the model's own, beyond chance
    (an exact McNemar test on the same pictures, p < 0.01).
    """
    samples = sorted(data.val, key=lambda sample: sample.sha256)[:_MOST_TRIED]
    from scipy.stats import binomtest

    own = model.geometry
    right = _correct(model, own, samples)
    sentences = []
    for name, (mean, std) in _NORMALISATIONS.items():
        if (mean, std) == (own.mean, own.std):
            continue
        other = _correct(model, replace(own, mean=mean, std=std), samples)
        gained = sum(b and not a for a, b in zip(right, other, strict=True))
        lost = sum(a and not b for a, b in zip(right, other, strict=True))
        if gained > lost and binomtest(gained, gained + lost).pvalue < _SIGNIFICANT:
            sentences.append(
                f"With another normalisation, {name}, {sum(other)} of {len(samples)} validation pictures are "
                f"right instead of {sum(right)}: was the model trained with that one?"
            )
    return sentences


def _correct(model: TransferModel, geometry: Geometry, samples: Sequence[object]) -> list[bool]:
    own, model.geometry = model.geometry, geometry
    try:
        judged_samples = evaluate(model, list(samples), "val").samples  # type: ignore[arg-type]
    finally:
        model.geometry = own
    return [item.is_correct for item in judged_samples]


def _describe(log: RunLogger, model: TransferModel, source: str, name: str, notes: Sequence[str]) -> None:
    weights = hashlib.sha256()
    for key, value in model.state_dict().items():
        weights.update(key.encode() + to_host(value.contiguous()).numpy().tobytes())
    log.status("RUNNING")
    log.params(
        {
            "model_name": name,
            "adopted": source,
            "backbone": model.backbone.name,
            "classes": len(model.classes),
            "cam_block": model.cam_block,
            "weights.sha256": weights.hexdigest(),
            **{f"geometry.{key}": value for key, value in model.geometry.to_dict().items()},
        }
    )
    log.tags({"lucida.adopted": source, **package_versions(), **git_tags(Path.cwd())})
    blocks = {block: model.layout(block).name for block in model.block_names}
    log.file(to_json({"blocks": blocks, "notes": list(notes)}), "adoption.json")


def _register_alone(log: RunLogger, model: TransferModel, source: str, name: str, folder: Path) -> str:
    """Register without data: nothing is known of how well it does."""
    bundle = folder / "bundle"
    digest = save_bundle(model, bundle, name=name, run_id=log.run_id, training={"adopted": source})
    log.flush(PATIENCE_S)
    text = f"**Adopted from {source}, without data: neither judged nor calibrated.** Bundle {digest[:12]}."
    registered = register_version(
        bundle, name=name, run_id=log.run_id, metrics={}, timestamp_ms=_now_ms(), description=text
    )
    return str(registered.version)


def _now_ms() -> int:
    return int(time.time() * 1000)
