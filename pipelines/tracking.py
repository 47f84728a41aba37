"""Everything that is said to MLflow: runs, metrics, pictures, the logged model and the registry.

The store is MLflow's own choice (sqlite:///mlflow.db in the working folder) or what MLFLOW_TRACKING_URI
names. A model is taken from the registry as files and checked as a bundle; MLflow's loaders, which run a
model's own code, are never called.
"""

from __future__ import annotations

import io
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
import PIL.Image
from mlflow.data.dataset_source_registry import resolve_dataset_source
from mlflow.data.meta_dataset import MetaDataset
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema

import models
from models import bundle
from models.errors import RegistryError
from pipelines.data import Dataset
from pipelines.finetune import Epoch, PhaseResult

CHAMPION = "champion"
EXPERIMENT = "camera-lucida"
BUNDLE = "bundle"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PYFUNC = Path(__file__).with_name("pyfunc.py")


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A registered version and the folder that its bundle was copied to, not yet checked."""

    name: str
    version: str
    run_id: str
    folder: Path


def check_name(name: str) -> str:
    """A registered model's name that is safe in a URI and as a folder; raises RegistryError."""
    if not _NAME.fullmatch(name):
        raise RegistryError(f"The model name {name!r} must be letters, digits, '.', '_' or '-', at most 100.")
    return name


@contextmanager
def run(name: str, *, nested: bool = False) -> Iterator[str]:
    """An MLflow run that always ends: FINISHED, FAILED on an error, KILLED on Ctrl-C or a stop; yields its
    id.
    """
    if not nested:
        mlflow.set_experiment(EXPERIMENT)
    started = mlflow.start_run(run_name=name, nested=nested)
    try:
        yield started.info.run_id
    except (KeyboardInterrupt, SystemExit):
        mlflow.end_run("KILLED")
        raise
    except BaseException:
        mlflow.end_run("FAILED")
        raise
    mlflow.end_run("FINISHED")


def log_setup(params: Mapping[str, Any], data: Dataset) -> None:
    """Parameters, versions, and the data set as an input with its digest."""
    mlflow.log_params(dict(params))
    mlflow.set_tags(
        {f"version.{name}": version(name) for name in ("torch", "torchvision", "captum", "pillow")}
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        source = resolve_dataset_source(str(data.root))
    # MLflow allows a digest 36 characters; the whole one is a tag.
    mlflow.log_input(MetaDataset(source, name=data.name, digest=data.digest[:36]), context="training")
    mlflow.set_tag("dataset.digest", data.digest)
    mlflow.log_dict(
        {
            **data.summary(),
            "classes": data.classes,
            "skipped_files": [{"name": item.name, "reason": item.reason} for item in data.skipped],
            "pictures_on_both_sides": [list(pair) for pair in data.shared],
        },
        "dataset.json",
    )


def log_epochs(epochs: list[Epoch]) -> None:
    """All metrics of a phase's epochs in one call to the present run."""
    now = int(time.time() * 1000)
    metrics = []
    for epoch in epochs:
        values = {"val_loss": epoch.val_loss, "val_accuracy": epoch.val_accuracy}
        if epoch.number > 0:
            values["train_loss"] = epoch.train_loss
        values |= {f"rate.{name}": rate for name, rate in epoch.rates.items()}
        metrics += [Metric(name, value, now, epoch.number) for name, value in values.items()]
    active = mlflow.active_run()
    if active is not None:
        mlflow.MlflowClient().log_batch(active.info.run_id, metrics=metrics)


def log_phase(result: PhaseResult) -> None:
    """What the phase trained and how it went, to the present (child) run."""
    phase = result.phase
    mlflow.log_params(
        {
            "train_from": phase.train_from,
            "epochs": phase.epochs,
            "rate": phase.rate,
            "block_decay": phase.block_decay,
            "weight_decay": phase.weight_decay,
            "trained_parts": ", ".join(result.trained_blocks),
            "batch_norm": "frozen statistics",
            "cached_views": result.cached_views,
            "best_epoch": result.best.number,
        }
    )
    log_epochs(result.epochs)


def log_metrics(metrics: Mapping[str, float]) -> None:
    """Final metrics, to the present run."""
    mlflow.log_metrics(dict(metrics))


def log_picture(picture: PIL.Image.Image, path: str, *, run_id: str | None = None) -> None:
    """A PNG artefact of the present run, or of a finished one."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    _log_bytes(buffer.getvalue(), path, run_id=run_id)


def log_page(html: str, path: str, *, run_id: str | None = None) -> None:
    """An HTML artefact of the present run, or of a finished one."""
    _log_bytes(html.encode(), path, run_id=run_id)


def log_model(folder: Path, *, name: str, metrics: Mapping[str, float]) -> ModelVersion:
    """Log a bundle as a models-from-code pyfunc in the present run and register it as a new version of
    ``name``.

    The version is made after everything that it names has been stored, so it is complete from its first
    moment.
    """
    check_name(name)
    pictures = Schema([ColSpec(DataType.binary, "image")])
    requirements = [
        f"{name}=={version(name)}" for name in ("torch", "torchvision", "captum", "pillow", "safetensors")
    ]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example.*")
        info = _log_pyfunc(folder, pictures, requirements)
    client = mlflow.MlflowClient()
    with suppress(MlflowException):  # it exists already
        client.create_registered_model(name)
    tags = {f"metric.{metric}": f"{value:.6f}" for metric, value in metrics.items()}
    active = mlflow.active_run()
    run_id = active.info.run_id if active is not None else None
    return client.create_model_version(name, info.model_uri, run_id, tags=tags, model_id=info.model_id)


def _log_pyfunc(folder: Path, inputs: Schema, requirements: list[str]) -> Any:
    with tempfile.TemporaryDirectory() as aside:
        # MLflow files an artefact under its folder's own name; fetch_bundle looks for this one.
        named = Path(aside) / BUNDLE
        bundle.copy(folder, named)
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(_PYFUNC),
            artifacts={BUNDLE: str(named)},
            code_paths=[str(Path(models.__file__).parent)],
            signature=ModelSignature(inputs=inputs),
            pip_requirements=requirements,
        )


def find_version(reference: str) -> ModelVersion:
    """A registered version by "NAME@alias", "NAME/number", or "NAME" for its newest; raises RegistryError."""
    client = mlflow.MlflowClient()
    reference = reference.removeprefix("models:/")
    try:
        if "@" in reference:
            name, alias = reference.split("@", 1)
            return client.get_model_version_by_alias(check_name(name), alias)
        name, _, number = reference.partition("/")
        check_name(name)
        if number:
            return client.get_model_version(name, number)
        versions = client.search_model_versions(f"name = '{name}'")
    except MlflowException as error:
        raise RegistryError(
            f"The registry at {mlflow.get_registry_uri()} has no model {reference!r}: {error.message}"
        ) from error
    if not versions:
        raise RegistryError(
            f"The registry at {mlflow.get_registry_uri()} has no version of the model {name!r}."
        )
    return max(versions, key=lambda item: int(item.version))


def champion(name: str) -> ModelVersion | None:
    """The version that the alias champion names, if any."""
    try:
        return mlflow.MlflowClient().get_model_version_by_alias(check_name(name), CHAMPION)
    except MlflowException as error:
        # Only "there is none" is an answer: a store that is away must not make a first champion of anybody.
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise RegistryError(
            f"The registry at {mlflow.get_registry_uri()} cannot be asked: {error.message}"
        ) from error


def fetch_bundle(reference: str, folder: Path) -> ModelRef:
    """Copy a registered version's bundle to a new ``folder``, noting name and version; its files are not
    yet trusted.
    """
    found = find_version(reference)
    with tempfile.TemporaryDirectory() as aside:
        try:
            # Only the bundle: what code was logged beside it is none of our business.
            files = mlflow.artifacts.download_artifacts(
                f"models:/{found.name}/{found.version}/artifacts/{BUNDLE}", dst_path=aside
            )
        except MlflowException as error:
            raise RegistryError(
                f"{found.name} version {found.version} has no model files: {error.message}"
            ) from error
        bundle.copy(Path(files), folder)
    bundle.register(folder, name=found.name, version=str(found.version), source="mlflow")
    return ModelRef(name=found.name, version=str(found.version), run_id=found.run_id or "", folder=folder)


def run_metrics(run_id: str) -> dict[str, float]:
    """The final metrics of a run; raises RegistryError when there is no such run."""
    return dict(_get_run(run_id).data.metrics)


def run_params(run_id: str) -> dict[str, str]:
    """The parameters of a run; raises RegistryError when there is no such run."""
    return dict(_get_run(run_id).data.params)


def run_tags(run_id: str) -> dict[str, str]:
    """The tags of a run; raises RegistryError when there is no such run."""
    return dict(_get_run(run_id).data.tags)


def set_champion(name: str, number: str) -> None:
    """Move the alias champion to a version."""
    mlflow.MlflowClient().set_registered_model_alias(name, CHAMPION, number)


def _get_run(run_id: str) -> Any:
    try:
        return mlflow.MlflowClient().get_run(run_id)
    except MlflowException as error:
        raise RegistryError(f"The store at {mlflow.get_tracking_uri()} has no run {run_id!r}.") from error


def _log_bytes(data: bytes, path: str, *, run_id: str | None = None) -> None:
    with tempfile.TemporaryDirectory() as aside:
        file = Path(aside) / Path(path).name
        file.write_bytes(data)
        parent = str(Path(path).parent)
        mlflow.log_artifact(str(file), None if parent == "." else parent, run_id=run_id)
