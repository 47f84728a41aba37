"""Classifiers that were trained elsewhere, cut by their graph and held against themselves."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import BundleError, ConfigError, NetworkNotTraceable, UnknownChoice
from models.images.geometry import Geometry
from models.networks.backbone import Backbone, discovered_backbone
from models.networks.block_discovery import DiscoveredBlocks, discover_blocks
from models.networks.cutting import WHOLE
from models.networks.description import exported_backbone
from models.networks.exported import (
    EXPORTED_PREFIX,
    PROGRAM_SUFFIX,
    are_exported_allowed,
    as_exported,
    check_exported_allowed,
    export_network,
    input_size,
    load_program,
    read_program,
)
from models.networks.hub_folder import HubFolder, read_folder
from models.networks.library import (
    build_network,
    described_backbone,
    is_library_name,
    library_geometry,
    pretrained_state,
)
from models.networks.registry import imagenet_classes
from models.networks.state_dicts import fit_state_dict, read_state_dict
from models.networks.transfer_model import TransferModel
from models.networks.transformers_networks import (
    build_transformers,
    kind_of,
    load_transformers,
    transformers_backbone,
)

_EXAMPLES = (
    "timm:convnext_atto", "torchvision:resnet50", "a folder with config.json and model.safetensors",
    "a program of torch.export (.pt2)", "python:package.module:factory", "mlflow:models:/NAME/VERSION",
)  # fmt: skip
_FACTORY = re.compile(r"python:([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


@dataclass(frozen=True, slots=True)
class Adopted:
    """A model that was trained elsewhere, and what was mended on the way."""

    model: TransferModel
    notes: tuple[str, ...]


def adopt(
    network: nn.Module,
    *,
    classes: Sequence[str],
    geometry: Geometry,
    name: str = "network",
    export: bool = False,
) -> TransferModel:
    """Cut a network in hand, (N, 3, H, W) to logits (N, classes), so that everything here explains it.

    It is put in eval mode and its weights are shared, not copied. Nothing is known of how it is built, so
    it can be explained but not saved as a bundle; with ``export`` it becomes a program of torch.export, which
    a bundle can hold. Raises NetworkNotTraceable, and ConfigError where the classes are not as many as the
    logits.
    """
    network = network.eval()
    x = _example(geometry)
    if export:
        return _adopt_program(export_network(network, x), as_exported(network, x), name, classes, geometry)
    backbone = discovered_backbone(
        name, _cannot_build, lambda: geometry, discover_blocks(network, x), known_by_name=False
    )
    return _model(backbone, network, classes, geometry, x)


def check_source(source: str, weights: Path | None) -> None:
    """Raise UnknownChoice or ConfigError for a source that cannot be adopted, before anything costs time."""
    if weights is not None and not weights.is_file():
        raise ConfigError(f"There is no file {weights}.")
    if is_library_name(source):
        library_geometry(source)
    elif Path(source).is_dir():
        read_folder(Path(source))
    elif Path(source).suffix in (".pth", ".pt", ".bin", ".ckpt", ".pkl") and Path(source).is_file():
        raise ConfigError(
            f"{source} holds weights or a pickled module, and not how the network is built. Name the "
            "network, such as timm:NAME, and give the file with --weights; or save the network with "
            f"torch.export.save as a {PROGRAM_SUFFIX} file."
        )
    elif not (_FACTORY.fullmatch(source) or (source.endswith(PROGRAM_SUFFIX) and Path(source).is_file())):
        raise UnknownChoice("source", source, _EXAMPLES)


def adopt_source(
    source: str,
    *,
    weights: Path | None,
    classes: Sequence[str] | None,
    likely_classes: Sequence[str] = (),
    geometry: Mapping[str, Any] | None = None,
) -> Adopted:
    """Adopt a network by what :func:`check_source` takes, with a file of weights or with its own.

    The classes are those that are named, else the source's own, else ``likely_classes``, such as those of a
    data set. ``geometry`` replaces single fields of the preprocessing that comes with the source. Raises
    UnknownChoice, ConfigError for weights or classes that do not fit, WeightsUnavailable and
    NetworkNotTraceable.
    """
    check_source(source, weights)
    changes = dict(geometry or {})
    if source.endswith(PROGRAM_SUFFIX) or _FACTORY.fullmatch(source):
        return _adopt_own_network(source, weights, classes or likely_classes, changes)
    folder = read_folder(Path(source)) if not is_library_name(source) else None
    if folder is not None and folder.library == "transformers":
        return _adopt_transformers(folder, weights, classes or folder.classes or likely_classes, changes)
    if folder is not None:
        source, weights = f"timm:{folder.config['architecture']}", weights or folder.weights
        check_source(source, weights)
    own_classes = folder.classes if folder is not None else imagenet_classes() if weights is None else []
    classes = _named(source, classes or own_classes or likely_classes)
    prepared = replace(folder.geometry if folder is not None else library_geometry(source), **changes)
    state, unwrapped = (pretrained_state(source), ()) if weights is None else read_state_dict(weights)
    network = build_network(source, len(classes)).eval()
    fitted = fit_state_dict(network, state)
    network.load_state_dict(fitted.state, strict=True)
    x = _example(prepared)
    backbone = described_backbone(source, discover_blocks(network, x))
    return Adopted(_model(backbone, network, classes, prepared, x), (*unwrapped, *fitted.notes))


def _adopt_transformers(
    folder: HubFolder, weights: Path | None, classes: Sequence[str], changes: Mapping[str, Any]
) -> Adopted:
    """Adopt a folder of transformers; where its own code cannot be cut, its exported program is."""
    name = f"transformers:{kind_of(folder.config)}"
    classes = _named(name, classes)
    geometry = replace(folder.geometry, **changes)
    notes: list[str] = []
    if weights is None:
        network = load_transformers(folder.weights.parent, folder.config, len(classes))
    else:
        network = build_transformers(folder.config, len(classes))
        notes += _load_file(network, weights)
    x = _example(geometry)
    blocks, by_export = _blocks_or_none(network, x), False
    if blocks is None:
        network, by_export = as_exported(network, x), True
        blocks = discover_blocks(network, x)
        notes.append("Its own code cannot be cut, so its exported program was.")
    backbone = transformers_backbone(folder.config, geometry, blocks, by_export=by_export)
    return Adopted(_model(backbone, network, classes, geometry, x), tuple(notes))


def _blocks_or_none(network: nn.Module, x: Tensor) -> DiscoveredBlocks | None:
    try:
        blocks = discover_blocks(network, x)
    except NetworkNotTraceable:
        return None
    return blocks if blocks.names != (WHOLE,) else None


def _adopt_own_network(
    source: str, weights: Path | None, classes: Sequence[str], changes: Mapping[str, Any]
) -> Adopted:
    """Adopt an exported program, or what a function of the user's own code builds, as a program."""
    classes = _named(source, classes)
    if {"mean", "std"} - set(changes):
        raise ConfigError(
            f"How are pictures normalised for {source}? Nothing in it says so: name --mean and --std, such "
            "as 0.485,0.456,0.406 and 0.229,0.224,0.225 for ImageNet's."
        )
    match = _FACTORY.fullmatch(source)
    notes: tuple[str, ...] = ()
    if match is None:
        check_exported_allowed(are_exported_allowed())
        program = read_program(Path(source))
        network = load_program(program)
        height, width = input_size(network)
        if weights is not None:
            raise ConfigError(f"{source} has weights of its own; --weights is for a network that is built.")
        geometry = _own_geometry({**changes, "crop_height": height, "crop_width": width})
        return Adopted(_adopt_program(program, network, Path(source).stem, classes, geometry), notes)
    network = _call_factory(match[1], match[2])
    if weights is not None:
        notes = _load_file(network, weights)
    geometry = _own_geometry(changes)
    return Adopted(adopt(network, classes=classes, geometry=geometry, name=match[2], export=True), notes)


def _load_file(network: nn.Module, weights: Path) -> tuple[str, ...]:
    """Give a network the weights of a file; return what was mended."""
    state, unwrapped = read_state_dict(weights)
    fitted = fit_state_dict(network, state)
    network.load_state_dict(fitted.state, strict=True)
    return (*unwrapped, *fitted.notes)


def _own_geometry(fields: Mapping[str, Any]) -> Geometry:
    """Return the preprocessing that was named for a network which says nothing of it."""
    named = {"crop_height": 224, "crop_width": 224, "interpolation": "bilinear", **fields}
    side = max(int(named["crop_height"]), int(named["crop_width"]))
    share = 256 / 224 if named.get("view", "crop") == "crop" else 1.0
    return Geometry.from_dict({"resize": int(side * share), **named})


def _call_factory(module: str, function: str) -> nn.Module:
    """Return what a function of the user's own code builds; raises ConfigError."""
    try:
        factory = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"There is no function {function} in {module} ({error}).") from error
    network = factory()
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{module}:{function} gives {type(network).__name__}, not a torch.nn.Module.")
    return network.eval()


def _adopt_program(
    program: bytes, network: nn.Module, name: str, classes: Sequence[str], geometry: Geometry
) -> TransferModel:
    x = _example(geometry)
    blocks = discover_blocks(network, x)
    own = f"{EXPORTED_PREFIX}{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)[:80]}"
    return _model(exported_backbone(own, program, geometry, blocks), network, classes, geometry, x)


def _named(source: str, classes: Sequence[str]) -> Sequence[str]:
    if not classes:
        raise ConfigError(f"Which classes has {source}? Name them in the order of its outputs.")
    return classes


def _model(
    backbone: Backbone, network: nn.Module, classes: Sequence[str], geometry: Geometry, x: Tensor
) -> TransferModel:
    with torch.no_grad():
        logits = network(x)
    outputs = logits.shape[1] if logits.ndim == 2 else 0
    if outputs != len(classes) or len(set(classes)) != len(classes):
        raise ConfigError(
            f"The network has {outputs} outputs; {len(classes)} classes are named, {len(set(classes))} of "
            "them different."
        )
    model = TransferModel(backbone, network, classes=list(classes), keep_classifier=True).eval()
    model.geometry = geometry
    # Both in the memory format that the model computes in, which rounds otherwise than the one before.
    with torch.no_grad():
        if not torch.equal(model(x), network(x)):
            raise NetworkNotTraceable(f"{backbone.name} does not give the same logits when it is cut.")
    return model


def _example(geometry: Geometry) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(1, 3, geometry.crop_height, geometry.crop_width, generator=generator)


def _cannot_build(outputs: int) -> nn.Module:
    raise BundleError(
        "This network was adopted as an object, so nothing says how to build it again; adopt it by its name "
        "in timm or torchvision, or with export=True."
    )
