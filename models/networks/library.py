"""Networks of torchvision and timm by their names there: ``torchvision:resnet50``, ``timm:convnext_atto``.

Their blocks are found by :mod:`models.networks.block_discovery`; their preprocessing is what their weights
were made with. timm comes with the extra ``timm``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from models.errors import UnknownChoice, WeightsUnavailable
from models.images.geometry import Geometry, Interpolation
from models.networks.backbone import Backbone, discovered_backbone
from models.networks.block_discovery import DiscoveredBlocks, discover_blocks

Library = Literal["timm", "torchvision"]
_NAME = re.compile(r"(timm|torchvision):([A-Za-z0-9_.-]{1,100})")
_LIBRARIES = ("timm", "torchvision", "transformers")
_BEST_WEIGHTS = "DEFAULT"
_WITHOUT_AUXILIARY = {"googlenet", "inception_v3"}
"""Builders of torchvision that add classifiers for training alone, unless they are told not to."""


def is_library_name(name: str) -> bool:
    """Return whether a name is that of a network of a library."""
    return _NAME.fullmatch(name) is not None


def library_of(name: str) -> tuple[str, str] | None:
    """Return (library, its version) of a network's name; None for a network of the table."""
    library, colon, _ = name.partition(":")
    if not colon or library not in _LIBRARIES:
        return None
    try:
        return library, version(library)
    except PackageNotFoundError:
        return library, "not installed"


def library_requirements(name: str) -> list[str]:
    """Return the packages, with the installed version, that a network needs besides those of every model."""
    library = library_of(name)
    return [f"{library[0]}=={library[1]}"] if library is not None and library[0] != "torchvision" else []


def library_names(library: Library) -> list[str]:
    """Return the names of a library's classifiers; raises WeightsUnavailable where it is not installed."""
    if library == "torchvision":
        return list(torchvision.models.list_models(module=torchvision.models))
    return list(_timm().list_models())


def installed_names() -> list[str]:
    """Return the full names of all networks of the libraries that are installed."""
    names = [f"torchvision:{builder}" for builder in library_names("torchvision")]
    with suppress(WeightsUnavailable):
        names += [f"timm:{builder}" for builder in library_names("timm")]
    return names


@lru_cache(maxsize=8)
def library_backbone(name: str) -> Backbone:
    """Build a library's network once, with random weights, and find its blocks.

    Raises UnknownChoice with close names, WeightsUnavailable where the library is not installed, and
    NetworkNotTraceable for a network without blocks.
    """
    library, builder = _split(name)
    geometry = _geometry(library, builder)
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = _build(library, builder, 1000).eval().requires_grad_(False)
    x = torch.randn(1, 3, geometry.crop_height, geometry.crop_width, generator=generator)
    return described_backbone(name, discover_blocks(network, x))


def described_backbone(name: str, blocks: DiscoveredBlocks) -> Backbone:
    """Return the backbone of a library's network whose blocks are known; raises UnknownChoice."""
    library, builder = _split(name)
    return discovered_backbone(
        name,
        partial(_build, library, builder),
        partial(_geometry, library, builder),
        blocks,
        pretrained=partial(_pretrained, library, builder),
    )


def _split(name: str) -> tuple[str, str]:
    """Return (library, builder); raises UnknownChoice with the names that are closest."""
    match = _NAME.fullmatch(name)
    assert match is not None
    library: Library = "timm" if match[1] == "timm" else "torchvision"
    names = library_names(library)
    if match[2] not in names:
        close = difflib.get_close_matches(match[2], names, n=5, cutoff=0.4)
        raise UnknownChoice(f"network of {library}", match[2], close or names)
    return library, match[2]


def _timm() -> Any:
    try:
        import timm
    except ImportError as error:
        raise WeightsUnavailable(
            "Networks of timm need the extra 'timm': pip install 'camera-lucida[timm]'."
        ) from error
    return timm


def build_network(name: str, outputs: int) -> nn.Module:
    """Build a library's network with that many outputs and random weights; raises UnknownChoice."""
    return _build(*_split(name), outputs)


def _build(library: str, builder: str, outputs: int) -> nn.Module:
    if library == "timm":
        network: nn.Module = _timm().create_model(builder, pretrained=False, num_classes=outputs)
        return network
    options: dict[str, Any] = {}
    if builder in _WITHOUT_AUXILIARY:
        options = {"init_weights": False, "aux_logits": False, "transform_input": True}
    if builder.startswith("vit_"):
        # Their position table is for one size, which is not the same for all weights.
        entry: Any = torchvision.models.get_model_weights(builder)[_BEST_WEIGHTS]
        options["image_size"] = entry.meta["min_size"][0]
    built: nn.Module = torchvision.models.get_model(builder, weights=None, num_classes=outputs, **options)
    return built


# ---------------------------------------------------------------- preprocessing and weights


def torchvision_geometry(name: str, weights: str) -> Geometry:
    """Return the preprocessing that torchvision's weights were made with."""
    preset = torchvision.models.get_model_weights(name)[weights].transforms()
    interpolation: Interpolation = "bicubic" if preset.interpolation.value == "bicubic" else "bilinear"
    red, green, blue = preset.mean
    red_std, green_std, blue_std = preset.std
    return Geometry(
        resize=preset.resize_size[0],
        crop_height=preset.crop_size[0],
        crop_width=preset.crop_size[0],
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        interpolation=interpolation,
    )


def timm_geometry(config: Mapping[str, Any]) -> Geometry:
    """Return the preprocessing of timm's ``pretrained_cfg``."""
    _, height, width = config["input_size"]
    red, green, blue = config["mean"]
    red_std, green_std, blue_std = config["std"]
    return Geometry(
        resize=int(max(height, width) / config["crop_pct"]),
        crop_height=height,
        crop_width=width,
        mean=(red, green, blue),
        std=(red_std, green_std, blue_std),
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
    )


def library_geometry(name: str) -> Geometry:
    """Return the preprocessing of a library's network; raises UnknownChoice."""
    return _geometry(*_split(name))


def _geometry(library: str, builder: str) -> Geometry:
    if library == "torchvision":
        return torchvision_geometry(builder, _BEST_WEIGHTS)
    config = _timm().get_pretrained_cfg(builder)
    return timm_geometry(config.to_dict() if config is not None else {})


def torchvision_state(name: str, weights: str, *, drop: tuple[str, ...] = ()) -> Mapping[str, Tensor]:
    """Return weights from TORCH_HOME or, failing that, the network; ``drop`` names prefixes that our network
    lacks. Raises WeightsUnavailable.
    """
    entry: Any = torchvision.models.get_model_weights(name)[weights]
    try:
        state: Mapping[str, Tensor] = entry.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsUnavailable(
            f"The ImageNet weights of {name} are not in {folder} and could not be downloaded ({error}). "
            f"Put {entry.url.rsplit('/', 1)[-1]} there (from {entry.url}), or set TORCH_HOME, "
            "or take the embedded backbone efficientnet_lite0, which needs no download."
        ) from error
    return {key: value for key, value in state.items() if not key.startswith(drop)} if drop else state


def pretrained_state(name: str) -> Mapping[str, Tensor]:
    """Return a library's own weights of a network; raises UnknownChoice or WeightsUnavailable."""
    return _pretrained(*_split(name))


def _pretrained(library: str, builder: str) -> Mapping[str, Tensor]:
    if library == "torchvision":
        auxiliary = ("aux1.", "aux2.", "AuxLogits.") if builder in _WITHOUT_AUXILIARY else ()
        return torchvision_state(builder, _BEST_WEIGHTS, drop=auxiliary)
    try:
        network: nn.Module = _timm().create_model(builder, pretrained=True)
    except Exception as error:
        # The hub's client raises errors of many libraries where it has no network or no such file.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsUnavailable(
            f"The weights of timm:{builder} are not in the cache of the Hugging Face hub and could not be "
            f"downloaded ({reason}). Set HF_HOME to a cache that has them, name a file with --weights, or "
            "train from random weights with --weights none."
        ) from error
    return network.state_dict()
