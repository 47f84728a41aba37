"""Image classifiers of transformers (extra ``transformers``), built from a config and fed as their
preprocessor says.

No code of a repository is run: only classes of the installed package are built, from plain values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from models.errors import ConfigError, UnknownChoice, WeightsUnavailable
from models.images.geometry import Geometry
from models.networks.backbone import Backbone, discovered_backbone
from models.networks.block_discovery import DiscoveredBlocks
from models.networks.exported import as_exported

PREFIX = "transformers:"
_KIND = re.compile(r"[A-Za-z0-9]{1,60}ForImageClassification(WithTeacher)?")
_MOST_LAYERS, _MOST_WIDTH, _MOST_WEIGHTS = 1_000, 100_000, 1_000_000_000
"""Of a config: what is larger would be built for hours, or fill the memory, before it could be checked."""
_REFUSED_KEYS = {"auto_map", "quantization_config", "custom_pipelines", "trust_remote_code"}
_BICUBIC = 3
"""Pillow's number for it, as preprocessor configs write it."""


def is_transformers_name(name: str) -> bool:
    """Return whether a name is that of an image classifier of transformers."""
    return name.startswith(PREFIX) and _KIND.fullmatch(name.removeprefix(PREFIX)) is not None


def build_transformers(config: Mapping[str, Any], outputs: int) -> nn.Module:
    """Build a config's classifier, (N, 3, H, W) to logits, with random weights.

    Raises UnknownChoice for a class that the installed transformers does not have, ConfigError for values
    that it does not take, and WeightsUnavailable where it is not installed.
    """
    network_class, plain = _class_and_config(config, outputs)
    return _as_classifier(_built(config, lambda: network_class(plain)))


def load_transformers(folder: Path, config: Mapping[str, Any], outputs: int) -> nn.Module:
    """Build a folder's classifier with its weights, whose names transformers itself translates.

    Raises as :func:`build_transformers` does, and ConfigError for weights that are missing or do not fit.
    """
    network_class, plain = _class_and_config(config, outputs)
    network, loaded = _built(
        config,
        lambda: network_class.from_pretrained(
            str(folder), config=plain, local_files_only=True, use_safetensors=True, output_loading_info=True
        ),
    )
    if missing := sorted(loaded["missing_keys"]):
        raise ConfigError(
            f"The weights in {folder} lack {len(missing)} of {kind_of(config)}'s, such as "
            f"{', '.join(missing[:3])}."
        )
    return _as_classifier(network)


def _class_and_config(config: Mapping[str, Any], outputs: int) -> tuple[Any, Any]:
    """Return the class that a config names, and the config as transformers has it."""
    transformers = _transformers()
    kind = kind_of(config)
    network_class = getattr(transformers, kind, None)
    if network_class is None:
        raise UnknownChoice("image classifier of transformers", kind, ("those of the installed version",))
    plain = {key: value for key, value in config.items() if key not in _REFUSED_KEYS and key[:1] != "_"}
    _check_sizes(plain)
    plain |= {"num_labels": outputs, "return_dict": True, "output_hidden_states": False}
    for name in ("id2label", "label2id"):
        plain.pop(name, None)
    return network_class, _built(config, lambda: network_class.config_class.from_dict(plain))


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Raise ConfigError for a network of more layers, or wider ones, than any that is in use."""
    for key, value in config.items():
        numbers = value if isinstance(value, list) else [value]
        sizes = [number for number in numbers if isinstance(number, int | float)]
        most = _MOST_LAYERS if re.search("layers|depth|block", key) else _MOST_WIDTH
        if len(sizes) > _MOST_LAYERS or any(not abs(size) <= most for size in sizes):
            raise ConfigError(f"The config's {key} is {str(value)[:60]}; it may be {most:,} at most.")


def _built(config: Mapping[str, Any], make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception as error:  # a config or a file of weights may be wrong in any way
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"transformers cannot build {kind_of(config)} from its config: {reason[:200]}"
        ) from error


def kind_of(config: Mapping[str, Any]) -> str:
    """Return the class that a config names; raises ConfigError for one that is no image classifier."""
    kinds = config.get("architectures")
    kind = kinds[0] if isinstance(kinds, list) and kinds and isinstance(kinds[0], str) else ""
    if _KIND.fullmatch(kind) is None:
        raise ConfigError(
            f"The config's architectures are {str(kinds)[:80]}; an image classifier's end with "
            "ForImageClassification."
        )
    return kind


def transformers_backbone(
    config: Mapping[str, Any], geometry: Geometry, blocks: DiscoveredBlocks, *, by_export: bool
) -> Backbone:
    """Return the backbone of a config whose blocks are known; ``by_export`` cuts its exported program."""
    build = partial(build_transformers, config)
    return discovered_backbone(
        PREFIX + kind_of(config),
        partial(_build_exported, build, geometry) if by_export else build,
        lambda: geometry,
        blocks,
        description={"network_config": dict(config), "by_export": by_export},
    )


def preprocessor_geometry(preprocessor: Mapping[str, Any]) -> Geometry:
    """Return the preprocessing of a ``preprocessor_config.json``; raises ConfigError."""
    try:
        size, crop = preprocessor.get("size", 224), preprocessor.get("crop_size")
        height, width = _sides(crop if preprocessor.get("do_center_crop") and crop is not None else size)
        normalises = preprocessor.get("do_normalize", True)
        mean = preprocessor["image_mean"] if normalises else (0.0, 0.0, 0.0)
        std = preprocessor["image_std"] if normalises else (1.0, 1.0, 1.0)
        interpolation = "bicubic" if preprocessor.get("resample", 2) == _BICUBIC else "bilinear"
        short = size.get("shortest_edge") if isinstance(size, dict) else None
        crop_share = preprocessor.get("crop_pct")
        resize, view = max(height, width), "whole"
        if short is not None and crop_share:
            # ConvNeXt's: the short side is enlarged by the share, and the centre of that size is cropped.
            resize, view = int(short / crop_share), "crop"
        elif preprocessor.get("do_center_crop"):
            resize, view = max(int(short or max(_sides(size))), height, width), "crop"
        return Geometry.from_dict(
            {"resize": resize, "crop_height": height, "crop_width": width, "mean": mean, "std": std,
             "interpolation": interpolation, "view": view}
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise ConfigError(
            f"preprocessor_config.json does not say how pictures are prepared: {error!r}."
        ) from error


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, dict):
        edge: Any = size.get("shortest_edge")
        return int(size.get("height", edge)), int(size.get("width", edge))
    return int(size), int(size)


def _build_exported(build: Any, geometry: Geometry, outputs: int) -> nn.Module:
    with torch.device("meta"):
        outline = build(outputs)
    if (weights := sum(value.numel() for value in outline.parameters())) > _MOST_WEIGHTS:
        raise ConfigError(f"The network has {weights:,} weights; {_MOST_WEIGHTS:,} are the most here.")
    with torch.device("cpu"):
        return as_exported(build(outputs), torch.zeros(1, 3, geometry.crop_height, geometry.crop_width))


def _as_classifier(network: nn.Module) -> nn.Module:
    """Let a network of transformers take images and return logits, its modules keeping their paths."""
    kind: Any = type(network)

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        logits: Tensor = kind.forward(self, pixel_values=x).logits
        return logits

    network.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return network.eval()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise WeightsUnavailable(
            "Networks of transformers need the extra 'transformers': pip install "
            "'camera-lucida[transformers]'."
        ) from error
    return transformers
