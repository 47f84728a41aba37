"""A model that others logged to MLflow, as files, and what of it can be adopted; MLflow loads nothing."""

from __future__ import annotations

from pathlib import Path

import mlflow

from models.bundle import MANIFEST_FILE
from models.networks.exported import PROGRAM_SUFFIX
from pipelines.errors import RegistryError
from pipelines.tracking.outbox import TRACKER_ERRORS

PREFIX = "mlflow:"
_HUB_CONFIG = "config.json"
_PICKLES = (".pth", ".pkl", ".pt", ".joblib", ".bin")


def fetch_foreign_model(source: str, folder: Path) -> Path:
    """Download ``mlflow:models:/NAME/VERSION`` (or any artefact address) and return what can be adopted in
    it: a folder of the Hugging Face hub, as MLflow's transformers flavour has, or an exported program.

    Raises RegistryError where there is neither, or the model is one of this project already.
    """
    uri = source.removeprefix(PREFIX)
    try:
        local = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(folder)))
    except TRACKER_ERRORS as error:
        raise RegistryError(f"MLflow has no model {uri}: {' '.join(str(error).split())[:200]}") from error
    files = sorted(path for path in local.rglob("*") if path.is_file())
    if any(path.name == MANIFEST_FILE for path in files):
        raise RegistryError(
            f"{uri} is a model of this project already; promote, review or package it as it is."
        )
    for path in files:
        if path.name == _HUB_CONFIG and list(path.parent.glob("*.safetensors")):
            return path.parent
        if path.suffix == PROGRAM_SUFFIX:
            return path
    pickled = [path.name for path in files if path.suffix in _PICKLES]
    what = (
        f"only pickled modules ({', '.join(pickled[:3])}), which are never loaded" if pickled else "neither"
    )
    raise RegistryError(
        f"{uri} should hold a folder with config.json and model.safetensors, or an exported program "
        f"({PROGRAM_SUFFIX}); it has {what}. Save the network by torch.export.save, or its state dict, and "
        "adopt that."
    )
