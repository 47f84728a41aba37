"""A trained model as a folder that anybody can check: bundle.json, weights.safetensors, probe.png, and
reference.safetensors where its validation images were measured.

bundle.json says what the model is (classes, backbone, geometry, Grad-CAM block), where it came from (run,
data set digest, versions, metrics) and what the other files' digests are. The probe is a drawn image with
the logits that the model gave when it was saved; loading runs it again, so a bundle that loads is one that
still answers the same.

No pickle is written or read. Saving is atomic: the folder appears whole or not at all.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import PIL.Image
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from models.atomic_write import atomic_folder
from models.devices import CPU, to_host
from models.errors import (
    BundleError,
    ConfigError,
    NetworkNotTraceable,
    UnknownChoice,
)
from models.images.decode import decode_image
from models.images.encode import encode_image
from models.images.geometry import Geometry
from models.method_checks import RandomizationCheck
from models.method_choice import MethodChoice
from models.networks.backbone import build_outline
from models.networks.description import describe_network, other_library_version, read_backbone
from models.networks.exported import (
    EXPORTED_PREFIX,
    MOST_PROGRAM_BYTES,
    PROGRAM_FILE,
    are_exported_allowed,
    check_exported_allowed,
)
from models.networks.probe import probe_pixels
from models.networks.scoring import Scoring
from models.networks.transfer_model import TransferModel, count_outputs
from models.networks.weights import check_weights_header, parse_weights
from models.reference import REFERENCE_FILE, Reference
from models.strict_files import parse_json, read_file

BUNDLE_FORMAT = 1
MANIFEST_FILE, WEIGHTS_FILE, PROBE_FILE = "bundle.json", "weights.safetensors", "probe.png"
ATLAS_FILE = "atlas.json"
"""Written beside a bundle that has one: what its channels look for, as `lucida atlas` found it."""
CARD_FILE = "card.json"
"""Beside a bundle that was packaged with its model card."""
SAMPLES_FOLDER, SAMPLES_FILE = "samples", "samples.json"
"""Beside a bundle that has some: pictures for the service's page to offer, and their labels by file name."""
REGISTRATION_FILE = "registration.json"
"""Written beside a bundle that was taken from a registry: under which name and version it is known there."""

_SMALL_FILE = 64_000
_MOST_BYTES = {MANIFEST_FILE: 32_000_000, WEIGHTS_FILE: 8_000_000_000, PROBE_FILE: 20_000_000,
               PROGRAM_FILE: MOST_PROGRAM_BYTES, REFERENCE_FILE: 200_000_000}  # fmt: skip
"""Limits on the files of a bundle, in bytes; of those beside it, the small ones."""
_MOST_CLASSES = 100_000

_TOLERANCE = 1e-3
"""Of a probe logit, absolute and relative: above what other processors' arithmetic does, below what a flipped
bit of any consequence or another preprocessing does."""


@dataclass(frozen=True, slots=True)
class BundleProvenance:
    """The origin of a model, as far as it is known; every answer carries it."""

    model: str
    version: str | None
    run_id: str | None
    digest: str
    """SHA-256 of the bundle's manifest, which holds the digests of its files."""
    backbone: str


@dataclass(frozen=True)
class Bundle:
    """A loaded and checked model with its manifest."""

    folder: Path
    manifest: Mapping[str, Any]
    model: TransferModel = field(repr=False)
    provenance: BundleProvenance
    sanity: RandomizationCheck | None
    """Which methods depend on what this model has learnt; None for a bundle that was saved without."""
    reference: Reference | None
    """What its validation images are like; None for a bundle that was saved without."""
    best_methods: tuple[MethodChoice, ...]
    """The best method for each question; none in a bundle that was saved without a benchmark."""

    @property
    def probe(self) -> tuple[Tensor, Tensor]:
        """The probe as a batch (1, 3, H, W) and the logits (1, classes) that belong to it."""
        return _read_probe(self.folder, self.manifest, self.model.geometry)


def save_bundle(
    model: TransferModel,
    folder: Path,
    *,
    name: str,
    run_id: str | None = None,
    metrics: Mapping[str, float] | None = None,
    dataset: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
    sanity: RandomizationCheck | None = None,
    reference: Reference | None = None,
    best_methods: Sequence[MethodChoice] = (),
) -> str:
    """Write a model as a new bundle folder and return its digest; the model is left in eval mode.

    Raises BundleError when the folder exists already or the model has values that are not finite.
    """
    if folder.exists():
        raise BundleError(f"The folder {folder.name!r} exists already; a bundle is never overwritten.")
    if not model.backbone.known_by_name:
        raise BundleError(
            f"Nothing says how to build {model.backbone.name} again, which was adopted as an object; adopt "
            "it by its name in timm or torchvision, or as an exported program (export=True)."
        )
    model.eval()
    weights = save_tensors(_state_to_save(model))
    probe = encode_image(PIL.Image.fromarray(probe_pixels(model.geometry)), "png")
    with torch.no_grad():
        x, _ = model.geometry.prepare(decode_image(probe))
        logits = to_host(model(x.unsqueeze(0))[0]).double().tolist()
    files = {WEIGHTS_FILE: weights, PROBE_FILE: probe}
    if model.backbone.program is not None:
        files[PROGRAM_FILE] = model.backbone.program
    if reference is not None:
        files[REFERENCE_FILE] = reference.to_bytes()
    manifest: dict[str, Any] = {
        "format": BUNDLE_FORMAT,
        "name": name,
        "classes": model.classes,
        "backbone": model.backbone.name,
        "blocks": list(model.block_names),
        **describe_network(model),
        "cam_block": model.cam_block,
        "scoring": asdict(model.scoring),
        "geometry": model.geometry.to_dict(),
        "run_id": run_id,
        "metrics": dict(metrics or {}),
        "dataset": dict(dataset or {}),
        "training": dict(training or {}),
        "sanity": sanity.to_dict() if sanity is not None else None,
        **({"best_methods": [choice.to_dict() for choice in best_methods]} if best_methods else {}),
        "versions": {package: version(package) for package in ("torch", "torchvision", "captum", "pillow")},
        "files": {name: _sha256(data) for name, data in files.items()},
        "probe": {"file": PROBE_FILE, "logits": logits},
    }
    manifest["digest"] = _manifest_digest(manifest)
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    _write_folder(folder, {**files, MANIFEST_FILE: text.encode()})
    return str(manifest["digest"])


def _state_to_save(model: TransferModel) -> dict[str, Tensor]:
    """Return weights and buffers as the file takes them; raises BundleError where one is not finite."""
    state = {key: to_host(value.detach().contiguous()) for key, value in model.state_dict().items()}
    # A position table that every block reads is one tensor, which the file's format takes once only.
    owners = {value.untyped_storage().data_ptr(): key for key, value in state.items()}
    state = {
        key: value if owners[value.untyped_storage().data_ptr()] == key else value.clone()
        for key, value in state.items()
    }
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BundleError(f"The weights {key!r} are not finite; this model must not be saved.")
    return state


def load_bundle(
    folder: str | Path, *, device: torch.device = CPU, allow_exported: bool | None = None
) -> Bundle:
    """Load a bundle onto a device with every check: digests, names, shapes, finite values, and the probe's
    logits. ``allow_exported`` lets it hold a program of torch.export; LUCIDA_ALLOW_EXPORTED says so without.

    Raises BundleError naming the file and the reason; no code of the bundle's is ever run.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name, digest in manifest["files"].items():
        if _sha256(_read_file(folder, name)) != digest:
            raise BundleError(
                f"The file {name} does not have the digest in {MANIFEST_FILE}; it was altered or cut off."
            )
    allowed = are_exported_allowed() if allow_exported is None else allow_exported
    model = _empty_model(folder, manifest, allow_exported=allowed)
    weights = _read_file(folder, WEIGHTS_FILE)
    model.load_state_dict(parse_weights(weights, WEIGHTS_FILE, model.backbone.renamed), strict=True)
    model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    probe = _read_probe(folder, manifest, model.geometry)
    try:
        check_probe(model, *probe)
        if device != CPU:
            check_probe(model.to(device), *probe)
    except BundleError as error:
        raise BundleError(f"{error}{other_library_version(manifest)}") from error
    checked = manifest.get("sanity")
    return Bundle(
        folder=folder,
        manifest=manifest,
        model=model,
        provenance=_read_provenance(folder, manifest),
        sanity=RandomizationCheck.from_dict(checked) if checked is not None else None,
        reference=_read_reference(folder, manifest),
        best_methods=tuple(map(MethodChoice.from_dict, manifest.get("best_methods", ()))),
    )


def check_probe(model: TransferModel, x: Tensor, expected: Tensor) -> None:
    """Raise BundleError unless the model gives the probe's logits."""
    with torch.no_grad():
        logits = to_host(model(x)).double()
    if not torch.allclose(logits, expected, atol=_TOLERANCE, rtol=_TOLERANCE):
        worst = float((logits - expected).abs().max())
        raise BundleError(
            f"The probe's logits are off by {worst:.3g}: this model does not answer as when it was saved."
        )


def copy_bundle(source: Path, folder: Path) -> None:
    """Copy the files of a bundle, and nothing else that lies beside them, to a new folder; all of them or
    none.
    """
    if folder.exists():
        raise BundleError(f"The folder {folder.name!r} exists already; a bundle is never overwritten.")
    names = (*_read_manifest(source)["files"], MANIFEST_FILE)
    _write_folder(folder, {name: _read_file(source, name) for name in names})


def write_registration(folder: Path, *, name: str, version: str, source: str) -> None:
    """Note beside a bundle under which registered name and version it is known, and in which registry."""
    (folder / REGISTRATION_FILE).write_text(
        json.dumps({"name": name, "version": version, "source": source}, indent=2)
    )


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    with atomic_folder(folder) as aside:
        for name, data in files.items():
            (aside / name).write_bytes(data)


def read_probe_file(folder: Path) -> bytes:
    """Return the encoded probe image of a bundle folder; raises BundleError."""
    return _read_file(folder, PROBE_FILE)


def _read_file(folder: Path, name: str) -> bytes:
    return read_file(folder / name, most=_MOST_BYTES.get(name, _SMALL_FILE))


def read_digest(folder: Path) -> str:
    """Return the digest of a bundle's manifest, which has it, before anything else is read; raises
    BundleError.
    """
    return str(_read_manifest(folder)["digest"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    manifest = parse_json(_read_file(folder, MANIFEST_FILE), MANIFEST_FILE)
    if not isinstance(manifest, dict) or manifest.get("format") != BUNDLE_FORMAT:
        bundle_format = manifest.get("format") if isinstance(manifest, dict) else None
        raise BundleError(
            f"{MANIFEST_FILE} has format {bundle_format!r}; this version reads format {BUNDLE_FORMAT}."
        )
    if manifest.get("digest") != _manifest_digest(manifest):
        raise BundleError(f"{MANIFEST_FILE} does not have its own digest; it was altered.")
    kinds = {
        "classes": list,
        "backbone": str,
        "cam_block": str,
        "geometry": dict,
        "metrics": dict,
        "dataset": dict,
        "versions": dict,
        "files": dict,
        "probe": dict,
    }
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key), kind):
            raise BundleError(f"{MANIFEST_FILE} lacks a proper {key!r}.")
    names = [WEIGHTS_FILE, PROBE_FILE]
    names += [PROGRAM_FILE] if manifest["backbone"].startswith(EXPORTED_PREFIX) else []
    if set(manifest["files"]) - {REFERENCE_FILE} != set(names):
        raise BundleError(
            f"{MANIFEST_FILE} must list exactly {' and '.join(names)}, not {sorted(manifest['files'])}."
        )
    return manifest


def _empty_model(folder: Path, manifest: Mapping[str, Any], *, allow_exported: bool) -> TransferModel:
    """Return the manifest's architecture with random weights, once the weights' header has its shapes: what
    does not fit must cost no memory.
    """
    classes = manifest["classes"]
    if len(classes) > _MOST_CLASSES:
        raise BundleError(f"{MANIFEST_FILE} names {len(classes):,} classes; the limit is {_MOST_CLASSES:,}.")
    named = all(isinstance(name, str) and name.isprintable() for name in classes)
    if not named or len(classes) < 2 or len(set(classes)) != len(classes):
        raise BundleError(f"{MANIFEST_FILE} must name at least two different classes in plain text.")

    def read_program() -> bytes:
        check_exported_allowed(allow_exported)
        return _read_file(folder, PROGRAM_FILE)

    row = read_backbone(manifest, read_program)
    scoring = _read_scoring(manifest)
    outputs = count_outputs(classes, scoring.task)
    try:
        outline = build_outline(lambda: row.network("none", outputs))
        with torch.device("meta"):
            bare = TransferModel(row, outline, classes=classes, task=scoring.task)
        check_weights_header(folder / WEIGHTS_FILE, bare)
        model = TransferModel(row, row.network("none", outputs), classes=classes, task=scoring.task)
    except (ConfigError, NetworkNotTraceable) as error:
        raise BundleError(f"{MANIFEST_FILE} contradicts itself: {error}") from error
    model.scoring = scoring
    model.geometry = Geometry.from_dict(manifest["geometry"])
    if manifest["cam_block"] not in model.block_names:
        raise BundleError(f"The Grad-CAM block {manifest['cam_block']!r} is no block of {row.name}.")
    model.cam_block = manifest["cam_block"]
    return model


def _read_scoring(manifest: Mapping[str, Any]) -> Scoring:
    """Read task and temperature; bundles from before there were such fields are multiclass and
    uncalibrated.
    """
    try:
        return Scoring(**manifest.get("scoring", {}))
    except (TypeError, ConfigError, UnknownChoice) as error:
        raise BundleError(f"{MANIFEST_FILE} has no proper 'scoring': {error}") from error


def _read_probe(folder: Path, manifest: Mapping[str, Any], geometry: Geometry) -> tuple[Tensor, Tensor]:
    logits = manifest["probe"].get("logits")
    numbers = isinstance(logits, list) and all(isinstance(value, float | int) for value in logits)
    if not isinstance(logits, list) or not numbers or len(logits) != len(manifest["classes"]):
        raise BundleError(
            f"{MANIFEST_FILE} must hold one probe logit for each of the {len(manifest['classes'])} classes."
        )
    x, _ = geometry.prepare(decode_image(_read_file(folder, PROBE_FILE)))
    return x.unsqueeze(0), torch.tensor([logits], dtype=torch.float64)


def _read_reference(folder: Path, manifest: Mapping[str, Any]) -> Reference | None:
    if REFERENCE_FILE not in manifest["files"]:
        return None
    return Reference.from_bytes(_read_file(folder, REFERENCE_FILE), classes=len(manifest["classes"]))


def _read_provenance(folder: Path, manifest: Mapping[str, Any]) -> BundleProvenance:
    name, registered = str(manifest.get("name", "")), None
    if (folder / REGISTRATION_FILE).is_file():
        try:
            note = parse_json(_read_file(folder, REGISTRATION_FILE), REGISTRATION_FILE)
            name, registered = str(note["name"]), str(note["version"])
        except (KeyError, TypeError) as error:
            raise BundleError(f"{REGISTRATION_FILE} is damaged: {error!r}.") from error
    run_id = manifest.get("run_id")
    return BundleProvenance(
        model=name,
        version=registered,
        run_id=None if run_id is None else str(run_id),
        digest=str(manifest["digest"]),
        backbone=str(manifest["backbone"]),
    )


def _manifest_digest(manifest: Mapping[str, Any]) -> str:
    content = {key: value for key, value in manifest.items() if key != "digest"}
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return _sha256(text.encode())


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
