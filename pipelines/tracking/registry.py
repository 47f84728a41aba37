"""The logged model, the registry of versions, and what can be asked about a run.

A model is taken from the registry as files and checked as a bundle; MLflow's loaders, which run a
model's own code, are never called.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities import Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import Array

import models
from models.bundle import MANIFEST_FILE, SAMPLES_FOLDER, copy_bundle, write_registration
from models.errors import LucidaError
from models.networks.library import library_requirements
from pipelines.config.schema import TrainConfig
from pipelines.errors import RegistryError, TrackerUnavailable
from pipelines.tracking.namespace import copy_into_namespace, rename_imports
from pipelines.tracking.outbox import TRACKER_ERRORS
from pipelines.tracking.store import tracking_client, tracking_uri_without_password

CHAMPION_ALIAS = "champion"
BUNDLE_ARTIFACT = "bundle"
RegisteredVersion = ModelVersion
"""A version of a registered model, as MLflow describes it: name, version, run_id, tags."""
_MOST_LINKED = 100
_PREVIOUS_TAG = "champion.previous"
"""Of the registered model: the version that was champion before."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_LONGEST_DESCRIPTION = 5000
_CLAIM, _CLAIM_SECONDS, _SETTLE_SECONDS = "promotion.claim.", 600.0, 1.0
_PYFUNC = Path(__file__).with_name("pyfunc.py")


@dataclass(frozen=True, slots=True)
class FetchedBundle:
    """A registered version and the folder that its bundle was copied to, not yet checked."""

    name: str
    version: str
    run_id: str
    folder: Path


def check_name(name: str) -> str:
    """Return a registered model's name that is safe in a URI and as a folder; raises RegistryError."""
    if not _NAME.fullmatch(name):
        raise RegistryError(f"The model name {name!r} must be letters, digits, '.', '_' or '-', at most 100.")
    return name


def register_version(
    folder: Path,
    *,
    name: str,
    run_id: str,
    metrics: Mapping[str, float],
    timestamp_ms: int,
    description: str = "",
) -> ModelVersion:
    """Log a bundle as a models-from-code pyfunc of a run and register it as a new version of ``name``.

    The version is made after everything that it names has been stored, so it is complete from its first
    moment; a run that has a version already keeps that one, and what an interrupted attempt left is deleted.
    ``metrics`` are linked to the logged model under the timestamp that they have in the run;
    ``description``, in Markdown, is shown with the run and with the version, ``{artifacts}`` in it being the
    address of the run's artefacts on MLflow's pages.
    Raises TrackerUnavailable when MLflow is away.
    """
    check_name(name)
    client = tracking_client()
    try:
        versions = client.search_model_versions(f"run_id = '{run_id}'")
        if versions:
            return max(versions, key=lambda item: int(item.version))
        _delete_half_logged(client, run_id)
        with mlflow.start_run(run_id=run_id):
            info = _log_pyfunc(folder)
        # Leaving that context ended the run; it ends when its version is there.
        client.update_run(run_id, status="RUNNING")
        linked = [
            Metric(key, value, timestamp_ms, 0, model_id=info.model_id) for key, value in metrics.items()
        ]
        # MLflow's SQL stores take no more than a hundred metrics of a model at once.
        for start in range(0, len(linked), _MOST_LINKED):
            client.log_batch(run_id, metrics=linked[start : start + _MOST_LINKED])
        try:
            client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        experiment = client.get_run(run_id).info.experiment_id
        text = description.replace("{artifacts}", f"#/experiments/{experiment}/runs/{run_id}/artifacts")
        if text:
            client.set_tag(run_id, "mlflow.note.content", text[:_LONGEST_DESCRIPTION])
        tags = {f"metric.{metric}": f"{value:.6f}" for metric, value in metrics.items()}
        return client.create_model_version(
            name, info.model_uri, run_id, tags=tags, model_id=info.model_id,
            description=text[:_LONGEST_DESCRIPTION] or None,
        )  # fmt: skip
    except LucidaError:
        raise
    except Exception as error:
        # A store for artefacts raises what its own library raises.
        raise TrackerUnavailable(
            f"{name} could not be registered in {mlflow.get_registry_uri()}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error


def _delete_half_logged(client: mlflow.MlflowClient, run_id: str) -> None:
    """Delete the logged models of a run that no version names."""
    experiment = client.get_run(run_id).info.experiment_id
    for model in client.search_logged_models([experiment], f"source_run_id = '{run_id}'"):
        client.delete_logged_model(model.model_id)


def _log_pyfunc(folder: Path) -> Any:
    manifest = json.loads((folder / MANIFEST_FILE).read_text())
    needed = ("torch", "torchvision", "captum", "pillow", "safetensors")
    requirements = [f"{name}=={version(name)}" for name in needed]
    requirements += library_requirements(manifest["backbone"])
    with tempfile.TemporaryDirectory() as aside, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*input example.*")
        # MLflow files an artefact under its folder's own name; fetch_bundle looks for this one.
        named = Path(aside) / BUNDLE_ARTIFACT
        copy_bundle(folder, named)
        # Whoever loads the model may have a package called models.
        root = Path(models.__file__).parents[1]
        code = copy_into_namespace(root, Path(aside) / "code", ("models",))
        loader = Path(aside) / _PYFUNC.name
        loader.write_text(rename_imports(_PYFUNC.read_text()))
        return mlflow.pyfunc.log_model(
            name="model",
            python_model=str(loader),
            artifacts={BUNDLE_ARTIFACT: str(named)},
            code_paths=[str(code)],
            signature=_signature(manifest["classes"]),
            pip_requirements=requirements,
        )


def _signature(classes: Sequence[str]) -> ModelSignature:
    """Return what the logged model takes and gives: encoded images; label, score, and each class's score."""
    scores = [ColSpec(DataType.double, f"score_{name}") for name in classes]
    answer = [
        ColSpec(DataType.string, "label"),
        ColSpec(DataType.double, "score"),
        ColSpec(Array(DataType.string), "accepted"),
    ]
    return ModelSignature(inputs=Schema([ColSpec(DataType.binary, "image")]), outputs=Schema(answer + scores))


def find_version(reference: str) -> ModelVersion:
    """Find a registered version by "NAME@alias", "NAME/number", or "NAME" for its newest; raises
    RegistryError.
    """
    client = tracking_client()
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


def find_champion(name: str) -> ModelVersion | None:
    """Return the version that the alias champion names, if any."""
    try:
        return tracking_client().get_model_version_by_alias(check_name(name), CHAMPION_ALIAS)
    except MlflowException as error:
        # Only "there is none" is an answer: a store that is away must not make a first champion of anybody.
        if error.error_code in {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}:
            return None
        raise RegistryError(
            f"The registry at {mlflow.get_registry_uri()} cannot be asked: {error.message}"
        ) from error


def fetch_bundle(reference: str, folder: Path) -> FetchedBundle:
    """Copy a registered version's bundle to a new ``folder``, noting name and version; its files are not
    yet trusted.
    """
    model_version = find_version(reference)
    with tempfile.TemporaryDirectory() as aside:
        try:
            # Only the bundle: what code was logged beside it is none of our business.
            files = mlflow.artifacts.download_artifacts(
                f"models:/{model_version.name}/{model_version.version}/artifacts/{BUNDLE_ARTIFACT}",
                dst_path=aside,
            )
        except MlflowException as error:
            raise RegistryError(
                f"{model_version.name} version {model_version.version} has no model files: {error.message}"
            ) from error
        copy_bundle(Path(files), folder)
    write_registration(folder, name=model_version.name, version=str(model_version.version), source="mlflow")
    return FetchedBundle(
        name=model_version.name,
        version=str(model_version.version),
        run_id=model_version.run_id or "",
        folder=folder,
    )


def fetch_samples(run_id: str, folder: Path) -> None:
    """Copy the sample pictures of a run to a new ``folder``; nothing where the run has kept none."""
    client = tracking_client()
    if not client.list_artifacts(run_id, SAMPLES_FOLDER):
        return
    with tempfile.TemporaryDirectory() as aside:
        files = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path=SAMPLES_FOLDER, dst_path=aside
        )
        shutil.copytree(files, folder)


def run_metrics(run_id: str) -> dict[str, float]:
    """Return the final metrics of a run; raises RegistryError when there is no such run."""
    return dict(_get_run(run_id).data.metrics)


def run_params(run_id: str) -> dict[str, str]:
    """Return the parameters of a run; raises RegistryError when there is no such run."""
    return dict(_get_run(run_id).data.params)


def run_tags(run_id: str) -> dict[str, str]:
    """Return the tags of a run; raises RegistryError when there is no such run."""
    return dict(_get_run(run_id).data.tags)


def set_champion(name: str, number: str) -> None:
    """Move the alias champion to a version, and note the one that had it."""
    client, present = tracking_client(), find_champion(name)
    if present is not None and str(present.version) != number:
        client.set_registered_model_tag(name, _PREVIOUS_TAG, str(present.version))
    client.set_registered_model_alias(name, CHAMPION_ALIAS, number)


def find_previous_champion(name: str) -> ModelVersion | None:
    """Return the version that was champion before the present one, if any; raises RegistryError."""
    client = tracking_client()
    try:
        number = client.get_registered_model(check_name(name)).tags.get(_PREVIOUS_TAG)
    except MlflowException as error:
        raise RegistryError(
            f"The registry at {mlflow.get_registry_uri()} has no model {name!r}: {error.message}"
        ) from error
    return None if number is None else find_version(f"{name}/{number}")


def set_version_tag(name: str, number: str, key: str, value: str) -> None:
    """Set a tag of a registered version."""
    tracking_client().set_model_version_tag(name, number, key, value)


def claim_promotion(name: str, claim: str) -> str:
    """Say that a promotion of a model is about to move its alias, and return the claim's tag.

    Of several at once the first wins; the others raise RegistryError. A claim that was never released, since
    its process died, counts for ten minutes.
    """
    client, key = tracking_client(), f"{_CLAIM}{claim.split()[-1]}"

    def others() -> list[str]:
        recent = time.time() - _CLAIM_SECONDS
        tags = client.get_registered_model(name).tags
        claims = [value for tag, value in tags.items() if tag.startswith(_CLAIM) and tag != key]
        return [value for value in claims if float(value.split()[0]) > recent]

    if others():
        raise RegistryError(f"Another promotion of {name} is under way; judge again when it is done.")
    client.set_registered_model_tag(name, key, claim)
    # Whoever looked before this claim was there has made its own by then, and all see the same ones.
    time.sleep(_SETTLE_SECONDS)
    if any(other < claim for other in others()):
        release_claim(name, key)
        raise RegistryError(f"Another promotion of {name} came first; judge again.")
    return key


def release_claim(name: str, key: str) -> None:
    """Take back what :func:`claim_promotion` said."""
    tracking_client().delete_registered_model_tag(name, key)


def read_run_file(run_id: str, path: str) -> str | None:
    """Return the text of a run's file; None where it has none."""
    client = tracking_client()
    folder = str(Path(path).parent)
    if path not in {item.path for item in client.list_artifacts(run_id, folder)}:
        return None
    return str(mlflow.artifacts.load_text(f"runs:/{run_id}/{path}"))


def _get_run(run_id: str) -> Any:
    try:
        return tracking_client().get_run(run_id)
    except MlflowException as error:
        raise RegistryError(f"The store at {mlflow.get_tracking_uri()} has no run {run_id!r}.") from error


def find_run(reference: str) -> str:
    """Find a run's id by a run id or by a registered model (NAME, NAME@alias, NAME/number)."""
    if len(reference) == 32 and all(c in "0123456789abcdef" for c in reference):
        run_tags(reference)
        return reference
    model_version = find_version(reference)
    if not model_version.run_id:
        raise RegistryError(
            f"{model_version.name} version {model_version.version} does not say which run it came from."
        )
    return str(model_version.run_id)


def find_run_version(run_id: str) -> str:
    """Return the registered version, as "NAME/number", that a run produced; raises RegistryError when there
    is none.
    """
    try:
        versions = tracking_client().search_model_versions(f"run_id = '{run_id}'")
    except TRACKER_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise RegistryError(
            f"The registry at {tracking_uri_without_password()} cannot be asked: {reason}"
        ) from error
    if not versions:
        raise RegistryError(f"The run {run_id} registered no model version, so there is nothing to review.")
    newest = max(versions, key=lambda item: int(item.version))
    return f"{newest.name}/{newest.version}"


def run_val_share(run_id: str) -> float:
    """Return the share of an undivided folder that the run held out, so that a review divides it the same
    way.
    """
    return float(run_params(run_id).get("val_share", TrainConfig().val_share))
