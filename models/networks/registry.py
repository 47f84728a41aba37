"""The backbone table: each row says how a pretrained network is built, cut into an ordered list of named
blocks, and explained.

To add a backbone, add a row to ``BACKBONES`` (docs/how-to/add-a-network.md); the tests take it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torchvision
from torch import nn

from models.errors import UnknownChoice
from models.images.geometry import Geometry
from models.networks.backbone import Backbone
from models.networks.classifiers import (
    convnext_classifier,
    dropout_linear,
    hardswish_classifier,
    linear,
    squeezenet_classifier,
    vgg_classifier,
)
from models.networks.efficientnet_lite0 import EfficientNetLite0, packaged_state
from models.networks.layouts import CHANNELS_LAST, MAPS, Layout
from models.networks.library import is_library_name, library_backbone, torchvision_geometry, torchvision_state


def get_backbone(name: str) -> Backbone:
    """Return the row of that name, or what was found out about ``timm:NAME`` or ``torchvision:NAME``.

    Raises UnknownChoice with close names, WeightsUnavailable where the library is not installed, and
    NetworkNotTraceable.
    """
    if name in BACKBONES:
        return BACKBONES[name]
    if is_library_name(name):
        return library_backbone(name)
    raise UnknownChoice("backbone", name, (*BACKBONES, "timm:NAME", "torchvision:NAME"))


def imagenet_classes() -> list[str]:
    """Return the 1,000 ImageNet class names in the order of the pretrained networks' outputs."""
    return list(torchvision.models.ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


# ---------------------------------------------------------------- rows

_WEIGHTS = "IMAGENET1K_V1"
"""The V2 recipes (label smoothing, mixup) score higher on ImageNet but give poorer frozen features."""


def _torchvision_network(name: str, options: Mapping[str, Any], outputs: int) -> nn.Module:
    network: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=outputs, **options)
    return network


def _torchvision_backbone(
    name: str,
    *,
    blocks: Mapping[str, str],
    classifier: Callable[[int], nn.Module],
    cam_block: str,
    top_block: str,
    layout: Layout = MAPS,
    drop: tuple[str, ...] = (),
    renamed: Mapping[str, str] | None = None,
    **options: Any,
) -> Backbone:
    """Return a row whose network, weights and preprocessing are torchvision's."""
    return Backbone(
        name=name,
        build=partial(_torchvision_network, name, options),
        blocks=blocks,
        classifier=classifier,
        pretrained=partial(torchvision_state, name, _WEIGHTS, drop=drop),
        cam_block=cam_block,
        top_block=top_block,
        geometry=partial(torchvision_geometry, name, _WEIGHTS),
        layout=layout,
        renamed=renamed or {},
    )


# ---------------------------------------------------------------- what ends the blocks of each family


def _mbconv(stages: int) -> dict[str, str]:
    """Return the ends of EfficientNet's blocks: stem, each block of each stage, top."""
    return {
        r"features\.0": "stem",
        rf"features\.([1-{stages}])\.(\d+)": r"stage\1.\2",
        rf"features\.{stages + 1}": "top",
    }


def _vgg(convolutions: Sequence[int]) -> dict[str, str]:
    """Return the ends of VGG's blocks, conv1_1 to conv5_3, each behind its BatchNorm and ReLU."""
    names = [
        f"conv{stage}_{n}" for stage, count in enumerate(convolutions, start=1) for n in range(1, count + 1)
    ]
    return {
        # A convolution, its BatchNorm and its ReLU are three modules, and a pooling between stages is one.
        rf"features\.{3 * place + int(name[4]) + 1}": name
        for place, name in enumerate(names)
    }


_RESNET = {"maxpool": "stem", r"(layer\d\.\d+)": r"\1"}
_REGNET = {"stem": "stem", r"trunk_output\.block(\d)\.block\d-(\d+)": r"stage\1.\2"}
# A dense block cannot be cut inside, for each of its layers reads all before it.
_DENSENET = {r"features\.pool0": "stem", r"features\.(denseblock\d)": r"\1"}
_GOOGLENET = {"maxpool1": "conv1", "conv2": "conv2", "maxpool2": "conv3", r"(inception\d\w)": r"\1"}
_INCEPTION_V3 = {r"(Conv2d_\w+|Mixed_\w+)": r"\1"}
_MOBILENET = {r"(features\.\d+)": r"\1"}
_SHUFFLENET = {"maxpool": "stem", r"(stage\d\.\d+|conv5)": r"\1"}
_SQUEEZENET = {r"features\.2": "stem", r"(features\.([3-9]|1\d))": r"\1"}
_DOWNSAMPLED = {r"features\.0": "stem"} | {
    rf"features\.{2 * stage - 1}\.(\d+)": rf"stage{stage}.\1" for stage in range(1, 5)
}
_VIT_RENAMED = {
    "blocks.stem.conv_proj.": "blocks.stem.0.conv_proj.",
    "blocks.stem.class_token": "blocks.stem.2.class_token",
    "blocks.stem.pos_embedding": "blocks.stem.3.encoder.pos_embedding",
}
_VIT = {r"encoder\.dropout": "stem", r"encoder\.layers\.encoder_layer_(\d+)": r"layers.\1"}


def _resnet_backbone(name: str, *, last: str, features: int = 2048) -> Backbone:
    """Build a row with Grad-CAM at the last residual block, 7 x 7: what the pooling before the classifier
    reads.
    """
    classifier = partial(linear, features)
    return _torchvision_backbone(
        name, blocks=_RESNET, classifier=classifier, cam_block=last, top_block="layer4.0"
    )


def _lite0_geometry() -> Geometry:
    half = (0.5, 0.5, 0.5)
    return Geometry(resize=256, crop_height=224, crop_width=224, mean=half, std=half, interpolation="bicubic")


_LITE0 = Backbone(
    name="efficientnet_lite0",
    build=EfficientNetLite0,
    blocks=_mbconv(7),
    classifier=partial(dropout_linear, 1280),
    pretrained=packaged_state,
    cam_block="top",
    top_block="stage6.3",
    geometry=_lite0_geometry,
)

_CONVOLUTIONAL = (
    _LITE0,
    _resnet_backbone("resnet18", last="layer4.1", features=512),
    _resnet_backbone("resnet34", last="layer4.2", features=512),
    _resnet_backbone("resnet50", last="layer4.2"),
    _resnet_backbone("resnet101", last="layer4.2"),
    _resnet_backbone("wide_resnet50_2", last="layer4.2"),
    _resnet_backbone("resnext50_32x4d", last="layer4.2"),
    # After its BatchNorm and ReLU, as the classifier reads it.
    _torchvision_backbone("densenet121", blocks=_DENSENET, classifier=partial(linear, 1024),
         cam_block="denseblock4", top_block="denseblock4"),
    _torchvision_backbone("googlenet", blocks=_GOOGLENET, classifier=partial(linear, 1024),
         cam_block="inception5b", top_block="inception5a", drop=("aux1.", "aux2."),
         aux_logits=False, transform_input=True, init_weights=False),
    _torchvision_backbone("inception_v3", blocks=_INCEPTION_V3, classifier=partial(linear, 2048),
         cam_block="Mixed_7c", top_block="Mixed_7a", drop=("AuxLogits.",),
         aux_logits=False, transform_input=True, init_weights=False),
    # Before the last pooling: 14 x 14, four times the cells of what the classifier reads.
    _torchvision_backbone("vgg16_bn", blocks=_vgg((2, 2, 3, 3, 3)), classifier=vgg_classifier,
         cam_block="conv5_3", top_block="conv5_1"),
    _torchvision_backbone("mobilenet_v2", blocks=_MOBILENET, classifier=partial(dropout_linear, 1280),
         cam_block="features.18", top_block="features.15"),
    _torchvision_backbone("mobilenet_v3_small", blocks=_MOBILENET,
         classifier=partial(hardswish_classifier, 576, 1024),
         cam_block="features.12", top_block="features.9"),
    _torchvision_backbone("mobilenet_v3_large", blocks=_MOBILENET,
         classifier=partial(hardswish_classifier, 960, 1280),
         cam_block="features.16", top_block="features.13"),
    _torchvision_backbone("efficientnet_b0", blocks=_mbconv(7), classifier=partial(dropout_linear, 1280),
         cam_block="top", top_block="stage7.0"),
    _torchvision_backbone("efficientnet_v2_s", blocks=_mbconv(6), classifier=partial(dropout_linear, 1280),
         cam_block="top", top_block="stage6.14"),
    _torchvision_backbone("convnext_tiny", blocks=_DOWNSAMPLED, classifier=partial(convnext_classifier, 768),
         cam_block="stage4.2", top_block="stage4.0"),
    _torchvision_backbone("regnet_y_400mf", blocks=_REGNET, classifier=partial(linear, 440),
         cam_block="stage4.5", top_block="stage4.0"),
    # The last convolution, not the last shuffled unit: its channels are those that the classifier weighs.
    _torchvision_backbone("shufflenet_v2_x1_0", blocks=_SHUFFLENET, classifier=partial(linear, 1024),
         cam_block="conv5", top_block="stage4.0"),
    # The last fire module: after the classifier's convolution each channel is a class already.
    _torchvision_backbone("squeezenet1_1", blocks=_SQUEEZENET, classifier=squeezenet_classifier,
         cam_block="features.12", top_block="features.10"),
)  # fmt: skip

_TRANSFORMERS = (
    _torchvision_backbone("swin_t", blocks=_DOWNSAMPLED, classifier=partial(linear, 768),
         layout=CHANNELS_LAST, cam_block="stage4.1", top_block="stage4.0"),
    # Not the last layer: the head reads only its class token, so its patches have no gradient.
    _torchvision_backbone("vit_b_16", blocks=_VIT, classifier=partial(linear, 768),
         layout=Layout("tokens", prefix=1, rows=14, cols=14), renamed=_VIT_RENAMED,
         cam_block="layers.10", top_block="layers.10"),
)  # fmt: skip

DEFAULT_BACKBONE = "efficientnet_lite0"
"""The backbone whose weights come with a package, so that nothing is downloaded at run time."""

BACKBONES: dict[str, Backbone] = {row.name: row for row in (*_CONVOLUTIONAL, *_TRANSFORMERS)}
