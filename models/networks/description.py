"""What a bundle says of a network that no row of the table describes, and the backbone that follows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from torch import nn

from models.errors import BundleError, ConfigError, UnknownChoice, WeightsUnavailable
from models.images.geometry import Geometry
from models.networks.backbone import Backbone, discovered_backbone
from models.networks.block_discovery import DiscoveredBlocks
from models.networks.exported import EXPORTED_PREFIX, load_program
from models.networks.layouts import Layout
from models.networks.library import described_backbone, is_library_name, library_of
from models.networks.registry import BACKBONES
from models.networks.transfer_model import TransferModel
from models.networks.transformers_networks import is_transformers_name, kind_of, transformers_backbone

_MOST_BLOCKS = 2_000


def describe_network(model: TransferModel) -> dict[str, Any]:
    """Return what was found out about a network that is in no row, as a bundle keeps it."""
    backbone = model.backbone
    library = library_of(backbone.name)
    if backbone.name in BACKBONES:
        return {}
    return {
        **({"library": {"name": library[0], "version": library[1]}} if library is not None else {}),
        "layouts": {name: asdict(model.layout(name)) for name in model.block_names},
        "top_block": backbone.top_block,
        **backbone.description,
    }


def read_backbone(manifest: Mapping[str, Any], program: Callable[[], bytes]) -> Backbone:
    """Return the row of a manifest's backbone, or what the manifest says of another network; ``program``
    gives the bundle's exported program, or raises BundleError where none may be loaded.

    Raises BundleError.
    """
    name = manifest["backbone"]
    if name in BACKBONES:
        return BACKBONES[name]
    if not (is_library_name(name) or is_transformers_name(name) or name.startswith(EXPORTED_PREFIX)):
        raise BundleError(f"Unknown backbone {name!r}; this version has {', '.join(BACKBONES)}.")
    try:
        names, cam_block, top_block = manifest["blocks"], manifest["cam_block"], manifest["top_block"]
        layouts = {block: Layout(**manifest["layouts"][block]) for block in names}
        if not 0 < len(names) <= _MOST_BLOCKS or not {cam_block, top_block} <= set(names):
            raise ValueError(f"{cam_block!r} or {top_block!r} is no block")
        blocks = DiscoveredBlocks(tuple(names), layouts, cam_block, top_block)
        geometry = Geometry.from_dict(manifest["geometry"])
        if is_library_name(name):
            return described_backbone(name, blocks)
        if name.startswith(EXPORTED_PREFIX):
            return exported_backbone(name, program(), geometry, blocks)
        config = manifest["network_config"]
        if not isinstance(config, dict) or name != f"transformers:{kind_of(config)}":
            raise ValueError("network_config is another network's")
        return transformers_backbone(config, geometry, blocks, by_export=manifest["by_export"] is True)
    except (KeyError, TypeError, ValueError, ConfigError) as error:
        raise BundleError(f"The manifest does not describe the blocks of {name}: {error!r}.") from error
    except (UnknownChoice, WeightsUnavailable) as error:
        raise BundleError(f"The network {name} cannot be built here: {error}") from error


def exported_backbone(name: str, program: bytes, geometry: Geometry, blocks: DiscoveredBlocks) -> Backbone:
    """Return the backbone of an exported program whose blocks are known."""

    def build(outputs: int) -> nn.Module:
        return load_program(program)

    return discovered_backbone(name, build, lambda: geometry, blocks, program=program)


def other_library_version(manifest: Mapping[str, Any]) -> str:
    """Return a sentence where a library's network was saved with another version of it, or nothing."""
    saved, installed = manifest.get("library"), library_of(manifest["backbone"])
    if installed is None or not isinstance(saved, dict) or saved.get("version") == installed[1]:
        return ""
    return f" It was saved with {installed[0]} {saved.get('version')!s:.20}; {installed[1]} is installed."
