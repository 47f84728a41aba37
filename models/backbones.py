"""The backbone table: each row says how a pretrained network is built and cut into an ordered list of named
blocks.

A row's cut holds the very modules of the uncut network in the order of its forward, so that running the
blocks and then the head gives bit-equal logits. To add a backbone, add a row to ``BACKBONES``; the tests take
it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal
from urllib.error import URLError

import torch
import torchvision
from torch import Tensor, nn

from models import efficientnet_lite0
from models.errors import UnknownChoice, WeightsUnavailable
from models.geometry import Geometry, Interpolation

Pretraining = Literal["imagenet", "none"]


@dataclass(frozen=True, slots=True)
class Cut:
    """A network as named blocks, a pooling without parameters, and a classifier; the last two are its
    head.
    """

    blocks: Mapping[str, nn.Module]
    pool: nn.Module
    classifier: nn.Module


@dataclass(frozen=True, slots=True)
class Backbone:
    """One row of the table."""

    name: str
    build: Callable[[], nn.Module]
    """The uncut network with 1,000 outputs and random weights."""
    cut: Callable[[nn.Module], Cut]
    classifier: Callable[[int], nn.Module]
    """A new classifier for that many classes, to follow the cut's pool."""
    pretrained: Callable[[], Mapping[str, Tensor]]
    """State dict for ``build()``'s network; raises WeightsUnavailable."""
    cam_block: str
    """The block whose output Grad-CAM reads unless told otherwise."""
    top_block: str
    """The lowest block that fine-tuning's phase "top blocks" unfreezes unless told otherwise."""
    geometry: Callable[[], Geometry]
    """The preprocessing that the pretrained weights were made with."""

    def block_names(self) -> tuple[str, ...]:
        """The names of the blocks, from the input up; the network is built without memory for its weights."""
        with torch.device("meta"):
            return tuple(self.cut(self.build()).blocks)

    def network(self, pretraining: Pretraining = "imagenet") -> nn.Module:
        """Build the uncut network in eval mode; ``pretraining="none"`` leaves its weights random."""
        network = self.build()
        if pretraining == "imagenet":
            network.load_state_dict(self.pretrained(), strict=True)
        return network.eval()


def backbone(name: str) -> Backbone:
    """The row of that name; raises UnknownChoice."""
    if name not in BACKBONES:
        raise UnknownChoice("backbone", name, BACKBONES)
    return BACKBONES[name]


def imagenet_classes() -> list[str]:
    """The 1,000 ImageNet class names in the order of the pretrained networks' outputs."""
    return list(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


# ---------------------------------------------------------------- torchvision's networks and their weights


def _torchvision_network(name: str, **options: Any) -> nn.Module:
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return network


def _torchvision_weights(name: str) -> Any:
    # V1 throughout: the V2 recipes (label smoothing, mixup) score higher on ImageNet but give poorer frozen
    # features.
    return torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]


def _torchvision_state(name: str, *, drop: tuple[str, ...] = ()) -> Mapping[str, Tensor]:
    """Weights from TORCH_HOME or, failing that, the network; ``drop`` names prefixes that our network
    lacks.
    """
    weights = _torchvision_weights(name)
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except (URLError, OSError, RuntimeError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise WeightsUnavailable(
            f"The ImageNet weights of {name} are not in {folder} and could not be downloaded ({error}). "
            f"Put {weights.url.rsplit('/', 1)[-1]} there (from {weights.url}), or set TORCH_HOME, "
            "or take the embedded backbone efficientnet_lite0, which needs no download."
        ) from error
    return {key: value for key, value in state.items() if not key.startswith(drop)} if drop else state


def _torchvision_geometry(name: str) -> Geometry:
    preset = _torchvision_weights(name).transforms()
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


def _linear(features: int, classes: int) -> nn.Module:
    return nn.Linear(features, classes)


def _row(
    name: str,
    *,
    cut: Callable[[nn.Module], Cut],
    classifier: Callable[[int], nn.Module],
    cam_block: str,
    top_block: str,
    drop: tuple[str, ...] = (),
    **options: Any,
) -> Backbone:
    """A row whose network, weights and preprocessing are torchvision's."""
    return Backbone(
        name=name,
        build=partial(_torchvision_network, name, **options),
        cut=cut,
        classifier=classifier,
        pretrained=partial(_torchvision_state, name, drop=drop),
        cam_block=cam_block,
        top_block=top_block,
        geometry=partial(_torchvision_geometry, name),
    )


def _pool() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def _cut_resnet(network: Any) -> Cut:
    """ResNet (He et al. 2016): stem, then each residual block; layer4's last block is the Grad-CAM block."""
    blocks: dict[str, nn.Module] = {
        "stem": nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool),
    }
    for stage in ("layer1", "layer2", "layer3", "layer4"):
        for index, block in enumerate(getattr(network, stage)):
            blocks[f"{stage}.{index}"] = block
    return Cut(blocks, _pool(), network.fc)


class _GoogLeNetInput(nn.Module):
    """From ImageNet's normalisation to the (x - 0.5) / 0.5 that GoogLeNet's weights were trained with."""

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        return self.transform(x)


def _cut_googlenet(network: Any) -> Cut:
    """GoogLeNet (Szegedy et al. 2015): two convolution stages, then nine inception blocks."""
    blocks: dict[str, nn.Module] = {
        "conv1": nn.Sequential(_GoogLeNetInput(network._transform_input), network.conv1, network.maxpool1),
        "conv2": network.conv2,
        "conv3": nn.Sequential(network.conv3, network.maxpool2),
    }
    # The pooling between two stages opens the later one, so that each stage's own map keeps its size.
    opening = {"4a": network.maxpool3, "5a": network.maxpool4}
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        block = getattr(network, f"inception{name}")
        blocks[f"inception{name}"] = nn.Sequential(opening[name], block) if name in opening else block
    return Cut(blocks, _pool(), nn.Sequential(network.dropout, network.fc))


def _cut_mobilenet_v3(network: Any) -> Cut:
    """MobileNetV3 (Howard et al. 2019): features.0 … features.16, then a two-layer classifier."""
    blocks = {f"features.{index}": block for index, block in enumerate(network.features)}
    return Cut(blocks, _pool(), network.classifier)


def _mobilenet_v3_large_classifier(classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(960, 1280), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(1280, classes))


def _cut_squeezenet(network: Any) -> Cut:
    """SqueezeNet (Iandola et al. 2016): the classifier is a convolution, pooled after it."""
    # The first ReLU works in place, on its convolution's output: one block, so that no block's value is
    # overwritten.
    blocks: dict[str, nn.Module] = {"stem": network.features[:3]}
    blocks |= {f"features.{index}": network.features[index] for index in range(3, len(network.features))}
    return Cut(blocks, nn.Identity(), nn.Sequential(network.classifier, nn.Flatten(1)))


def _squeezenet_classifier(classes: int) -> nn.Module:
    # Without the ReLU of the original: it would clip logits at 0 and leave a losing class no gradient to
    # recover by.
    conv = nn.Conv2d(512, classes, kernel_size=1)
    nn.init.normal_(conv.weight, std=0.01)
    return nn.Sequential(nn.Dropout(0.5), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


# ---------------------------------------------------------------- EfficientNet-Lite0, the embedded default


def _cut_lite0(network: Any) -> Cut:
    blocks: dict[str, nn.Module] = {"stem": network.features[0]}
    for stage, repeats in enumerate(network.features[1:-1], start=1):
        for index, block in enumerate(repeats):
            blocks[f"stage{stage}.{index}"] = block
    blocks["top"] = network.features[-1]
    return Cut(blocks, network.pool, nn.Sequential(network.dropout, network.classifier))


def _lite0_geometry() -> Geometry:
    half = (0.5, 0.5, 0.5)
    return Geometry(resize=256, crop_height=224, crop_width=224, mean=half, std=half, interpolation="bicubic")


def _lite0_classifier(classes: int) -> nn.Module:
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(1280, classes))


DEFAULT = "efficientnet_lite0"
"""The backbone whose weights come with a package, so that nothing is downloaded at run time."""

BACKBONES: dict[str, Backbone] = {
    row.name: row
    for row in (
        Backbone(
            name="efficientnet_lite0",
            build=efficientnet_lite0.EfficientNetLite0,
            cut=_cut_lite0,
            classifier=_lite0_classifier,
            pretrained=efficientnet_lite0.packaged_state,
            cam_block="top",
            top_block="stage6.3",
            geometry=_lite0_geometry,
        ),
        _row(
            "resnet18",
            cut=_cut_resnet,
            classifier=partial(_linear, 512),
            cam_block="layer4.1",
            top_block="layer4.0",
        ),
        _row(
            "resnet50",
            cut=_cut_resnet,
            classifier=partial(_linear, 2048),
            cam_block="layer4.2",
            top_block="layer4.0",
        ),
        _row(
            "googlenet",
            cut=_cut_googlenet,
            classifier=partial(_linear, 1024),
            cam_block="inception5b",
            top_block="inception5a",
            drop=("aux1.", "aux2."),
            aux_logits=False,
            transform_input=True,
            init_weights=False,
        ),
        _row(
            "mobilenet_v3_large",
            cut=_cut_mobilenet_v3,
            classifier=_mobilenet_v3_large_classifier,
            cam_block="features.16",
            top_block="features.13",
        ),
        _row(
            "squeezenet1_1",
            cut=_cut_squeezenet,
            classifier=_squeezenet_classifier,
            cam_block="features.12",
            top_block="features.10",
        ),
    )
}
