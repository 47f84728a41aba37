"""From the registry to something that serves by itself: a Bento model of the champion, and the Bento around
it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import bentoml
import yaml  # type: ignore[import-untyped]

import models
from models.backends.quantized import QuantizationFigures
from models.bundle import ATLAS_FILE, CARD_FILE, SAMPLES_FOLDER, load_bundle
from models.introspection.concept_set import CONCEPTS_FILE, read_concepts, write_concepts
from models.networks.library import library_requirements
from models.progress import Progress, no_progress
from models.signature import read_private_key, sign_digest
from pipelines.data.dataset import Dataset
from pipelines.errors import DataError, RegistryError
from pipelines.release.quantize import quantize
from pipelines.release.sbom import SBOM_FILE, ServedModel, make_sbom
from pipelines.reports.model_card import make_card, read_logged_card
from pipelines.tracking.namespace import copy_into_namespace
from pipelines.tracking.registry import FetchedBundle, fetch_bundle, fetch_samples

_PROJECT_LABEL = "camera-lucida"
"""As in service.app, which looks for models with it where it is not told which to serve."""
_TAG_LETTERS = 54
"""Of a tag's 63, so that the mark of a changed name has room."""


@dataclass(frozen=True, slots=True)
class PackagedModel:
    """Tags of what was made."""

    model_tag: str
    bento_tag: str
    name: str
    version: str
    digest: str
    int8: QuantizationFigures | None = None


def package(
    reference: str,
    *,
    build: bool = True,
    atlas: Path | None = None,
    concepts: Path | None = None,
    samples: bool = True,
    quantise: Dataset | None = None,
    sign: Path | None = None,
    progress: Progress = no_progress,
) -> PackagedModel:
    """Import a registered version's checked bundle as a Bento model and build the Bento that serves it.

    Both have the model's name, as :func:`tag_name` writes it, so that ``NAME:latest`` is of this model.

    The service answers GET /filters from the folder ``atlas``, and /concepts from the folder ``concepts``;
    raises DataError or BundleError for one of another model.
    With ``samples`` its page offers the few validation pictures that the run has kept for it. With
    ``quantise`` its model has int8 blocks too, calibrated on the data's training pictures, as
    :func:`pipelines.release.quantize.quantize` makes them. ``sign`` is a file with a private key in PEM, by
    which the bundle's digest is signed.
    The Bento holds the model and the code; it needs neither MLflow nor the network to run.
    """
    key = read_private_key(sign) if sign is not None else None
    bentofile = Path(models.__file__).resolve().parents[1] / "bentofile.yaml"
    with tempfile.TemporaryDirectory() as aside:
        ref = fetch_bundle(reference, Path(aside) / "bundle")
        checked = load_bundle(ref.folder)
        _check_findings(atlas, concepts, checked.provenance.digest)
        int8 = quantize(checked, quantise, progress=progress) if quantise is not None else None
        bento_name = tag_name(ref.name)
        labels = {"project": _PROJECT_LABEL, "model": ref.name, "version": ref.version}
        labels |= {"run_id": ref.run_id[:63], "digest": checked.provenance.digest[:63]}
        with bentoml.models.create(
            bento_name, labels=labels, metadata=dict(checked.manifest["metrics"])
        ) as bento_model:
            shutil.copytree(ref.folder, bento_model.path, dirs_exist_ok=True)
            folder, digest = Path(bento_model.path), checked.provenance.digest
            if samples:
                fetch_samples(ref.run_id, folder / SAMPLES_FOLDER)
            if int8 is not None:
                int8.write(folder, digest)
            _write_card(ref, folder, digest)
            if key is not None:
                sign_digest(folder, digest, key)
            _copy_findings(atlas, concepts, folder)
    tag = ""
    if build:
        more = library_requirements(checked.model.backbone.name)
        tag = _build_bento(bentofile, bento_name, str(bento_model.tag), more)
        served = ServedModel(ref.name, ref.version, checked.provenance.digest, checked.manifest["files"])
        _write_sbom(tag, served)
    return PackagedModel(
        str(bento_model.tag),
        tag,
        ref.name,
        ref.version,
        checked.provenance.digest,
        int8.figures if int8 is not None else None,
    )


def _build_bento(bentofile: Path, name: str, model_tag: str, more: Sequence[str]) -> str:
    """Build the Bento of a Bento model and return its tag; ``more`` are packages that the model needs besides
    those of the service. Raises RegistryError.

    Installed from a wheel, the code lies below a package beside that of others, and is copied from there.
    """
    if not bentofile.is_file():
        raise RegistryError(
            f"There is no bentofile.yaml in {bentofile.parent}; the installation is not whole."
        )
    options = yaml.safe_load(bentofile.read_text()) | {"name": name, "models": [model_tag]}
    package = models.__name__.rpartition(".")[0]
    if more:
        # BentoML takes a file or a list, not both.
        listed = (bentofile.parent / options["python"].pop("requirements_txt")).read_text().splitlines()
        options["python"]["packages"] = [line for line in (*listed, *more) if line.strip()]
    if not package:
        return str(bentoml.bentos.build(**options, build_ctx=str(bentofile.parent)).tag)
    options["service"] = f"{package}.{options['service']}"
    options["include"] = [f"{package}/"]
    if not more:
        options["python"]["requirements_txt"] = f"{package}/{options['python']['requirements_txt']}"
    with tempfile.TemporaryDirectory() as context:
        copy_into_namespace(bentofile.parent, Path(context), ("models", "service"))
        return str(bentoml.bentos.build(**options, build_ctx=context).tag)


def _write_card(ref: FetchedBundle, folder: Path, digest: str) -> None:
    """Write the version's card beside its bundle: the one that was logged, or else one without its owner's
    words.
    """
    card = read_logged_card(ref.run_id) or make_card(f"{ref.name}/{ref.version}", {})[1].files()
    (folder / CARD_FILE).write_text(json.dumps({"digest": digest, **card}, ensure_ascii=False))


def _write_sbom(tag: str, served: ServedModel) -> None:
    """Write what a Bento is made of into it, by its own list of packages."""
    folder = Path(bentoml.bentos.get(tag).path)
    listed = (folder / "env/python/requirements.txt").read_text().splitlines()
    (folder / SBOM_FILE).write_text(make_sbom(listed, served))


def tag_name(model: str) -> str:
    """Return a registered model's name as BentoML's tags have it: small letters, digits, and ``-_.`` within.

    A name that had to be changed gets a mark of its own, so that no two models share a tag.
    """
    name = re.sub(r"[^a-z0-9._-]+", "-", model.lower())[:_TAG_LETTERS].strip("._-")
    if name == model:
        return name
    return f"{name or 'model'}-{hashlib.sha256(model.encode()).hexdigest()[:8]}"


def _check_findings(atlas: Path | None, concepts: Path | None, digest: str) -> None:
    """Raise DataError or BundleError unless what shall lie beside a bundle is there, and of this one."""
    if atlas is not None:
        try:
            of = json.loads((atlas / ATLAS_FILE).read_text())["provenance"]["bundle digest"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"There is no {ATLAS_FILE} of `lucida atlas` in {atlas}.") from error
        if of != digest:
            raise DataError(f"The atlas in {atlas} is of the bundle {of[:12]}, not of {digest[:12]}.")
    if concepts is not None and read_concepts(concepts, digest) is None:
        raise DataError(f"There is no {CONCEPTS_FILE} of `lucida concepts` in {concepts}.")


def _copy_findings(atlas: Path | None, concepts: Path | None, folder: Path) -> None:
    """Copy an atlas and concepts, which were checked, beside a bundle."""
    if atlas is not None:
        shutil.copyfile(atlas / ATLAS_FILE, folder / ATLAS_FILE)
    if concepts is not None and (present := read_concepts(concepts)) is not None:
        write_concepts(present, folder)
