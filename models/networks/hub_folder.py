"""A folder as the Hugging Face hub has them: a config, weights, and what else timm or transformers saved."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from models.errors import BundleError, ConfigError
from models.images.geometry import Geometry
from models.networks.library import timm_geometry
from models.networks.transformers_networks import kind_of, preprocessor_geometry
from models.strict_files import parse_json, read_file

_CONFIG_FILE, _WEIGHTS_FILE, _PREPROCESSOR_FILE = (
    "config.json", "model.safetensors", "preprocessor_config.json",
)  # fmt: skip
_MOST_CONFIG_BYTES = 4_000_000


@dataclass(frozen=True, slots=True)
class HubFolder:
    """A folder of the hub, by what it says of its network."""

    library: Literal["timm", "transformers"]
    config: Mapping[str, Any]
    classes: list[str]
    """In the order of the outputs; none where it does not say."""
    geometry: Geometry
    weights: Path


def read_folder(folder: Path) -> HubFolder:
    """Return what a folder says; raises ConfigError or BundleError."""
    config = _read(folder, _CONFIG_FILE)
    if isinstance(config.get("architecture"), str):
        return _timm_folder(folder, config)
    kind_of(config)
    preprocessor = _read(folder, _PREPROCESSOR_FILE)
    return HubFolder(
        "transformers",
        config,
        _labels_of(config),
        preprocessor_geometry(preprocessor),
        folder / _WEIGHTS_FILE,
    )


def _read(folder: Path, name: str) -> dict[str, Any]:
    if not (folder / name).is_file():
        raise ConfigError(f"The folder {folder} has no {name}, which says how the network is built or fed.")
    content = parse_json(read_file(folder / name, most=_MOST_CONFIG_BYTES), name)
    if not isinstance(content, dict):
        raise ConfigError(f"{folder / name} must be a table.")
    return content


def _timm_folder(folder: Path, config: dict[str, Any]) -> HubFolder:
    try:
        geometry = timm_geometry(config["pretrained_cfg"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, BundleError) as error:
        raise ConfigError(
            f"{folder / _CONFIG_FILE} does not say how pictures are prepared: {error!r}."
        ) from error
    labels = config.get("label_names", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ConfigError(f"{folder / _CONFIG_FILE} has label_names that are no list of names.")
    return HubFolder("timm", config, labels, geometry, folder / _WEIGHTS_FILE)


def _labels_of(config: Mapping[str, Any]) -> list[str]:
    """Return the names in id2label, in the order of the outputs; none where it is not whole."""
    labels = config.get("id2label")
    if not isinstance(labels, dict):
        return []
    names = [labels.get(str(number)) for number in range(len(labels))]
    return [str(name) for name in names] if None not in names else []
