"""From the registry to something that serves by itself: a Bento model of the champion, and the Bento around
it.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import bentoml

import models
from models.bundle import ATLAS_FILE, SAMPLES_FOLDER, load_bundle
from pipelines.errors import DataError, RegistryError
from pipelines.tracking.registry import fetch_bundle, fetch_samples

BENTO_MODEL = "camera-lucida"
"""Name of the Bento model that the service loads; its labels say which registered model and version it is."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """Tags of what was made."""

    model_tag: str
    bento_tag: str
    name: str
    version: str
    digest: str


def package(
    reference: str, *, build: bool = True, atlas: Path | None = None, samples: bool = True
) -> PackagedModel:
    """Import a registered version's checked bundle as a Bento model and build the Bento that serves it.

    The service answers GET /filters from the folder ``atlas``; raises DataError for one of another model.
    With ``samples`` its page offers the few validation pictures that the run has kept for it.
    The Bento holds the model and the code; it needs neither MLflow nor the network to run.
    """
    project = Path(models.__file__).resolve().parents[1]
    bentofile = project / "bentofile.yaml"
    if build and not bentofile.is_file():
        raise RegistryError(
            f"There is no bentofile.yaml in {project}; build the Bento from a clone of the project."
        )
    with tempfile.TemporaryDirectory() as aside:
        ref = fetch_bundle(reference, Path(aside) / "bundle")
        checked = load_bundle(ref.folder)
        labels = {
            "model": ref.name,
            "version": ref.version,
            "run_id": ref.run_id[:63],
            "digest": checked.provenance.digest[:63],
        }
        with bentoml.models.create(
            BENTO_MODEL, labels=labels, metadata=dict(checked.manifest["metrics"])
        ) as bento_model:
            shutil.copytree(ref.folder, bento_model.path, dirs_exist_ok=True)
            if samples:
                fetch_samples(ref.run_id, Path(bento_model.path) / SAMPLES_FOLDER)
            if atlas is not None:
                _check_atlas(atlas, checked.provenance.digest)
                shutil.copyfile(atlas / ATLAS_FILE, Path(bento_model.path) / ATLAS_FILE)
    tag = ""
    if build:
        tag = str(bentoml.bentos.build_bentofile(str(bentofile), build_ctx=str(project)).tag)
    return PackagedModel(str(bento_model.tag), tag, ref.name, ref.version, checked.provenance.digest)


def _check_atlas(folder: Path, digest: str) -> None:
    try:
        of = json.loads((folder / ATLAS_FILE).read_text())["provenance"]["bundle digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"There is no {ATLAS_FILE} of `lucida atlas` in {folder}.") from error
    if of != digest:
        raise DataError(f"The atlas in {folder} is of the bundle {of[:12]}, not of {digest[:12]}.")
