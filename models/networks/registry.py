"""The backbone table: each row says how a pretrained network is built, cut into an ordered list of named
blocks, and explained.

To add a backbone, add a row to ``BACKBONES`` (docs/how-to/add-a-network.md); the tests take it from there.
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

from models.errors import UnknownChoice, WeightsUnavailable
from models.images.geometry import Geometry, Interpolation
from models.networks.cutting import (
    Cut,
    convnext,
    convnext_classifier,
    densenet,
    dropout_linear,
    efficientnet,
    googlenet,
    hardswish_classifier,
    inception_v3,
    linear,
    lite0,
    mobilenet,
    regnet,
    resnet,
    shufflenet,
    squeezenet,
    squeezenet_classifier,
    swin,
    vgg,
    vgg_classifier,
    vit,
)
from models.networks.efficientnet_lite0 import EfficientNetLite0, packaged_state
from models.networks.layouts import CHANNELS_LAST, MAPS, TOKENS, Layout

Pretraining = Literal["imagenet", "none"]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network of the table."""

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
    layout: Layout = MAPS
    """How the blocks' values are read as maps."""

    def block_names(self) -> tuple[str, ...]:
        """Return the names of the blocks, from the input up."""
        return tuple(self.cut(self.outline()).blocks)

    def outline(self) -> nn.Module:
        """Return the uncut network without memory for its weights, for its shapes alone."""
        try:
            with torch.device("meta"):
                return self.build()
        except NotImplementedError:
            # RegNet computes its widths with tensors, which need memory to be read.
            return self.build().to("meta")

    def network(self, pretraining: Pretraining = "imagenet") -> nn.Module:
        """Build the uncut network in eval mode; ``pretraining="none"`` leaves its weights random."""
        network = self.build()
        if pretraining == "imagenet":
            network.load_state_dict(self.pretrained(), strict=True)
        return network.eval()


def get_backbone(name: str) -> Backbone:
    """Return the row of that name; raises UnknownChoice."""
    if name not in BACKBONES:
        raise UnknownChoice("backbone", name, BACKBONES)
    return BACKBONES[name]


def imagenet_classes() -> list[str]:
    """Return the 1,000 ImageNet class names in the order of the pretrained networks' outputs."""
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
    """Return weights from TORCH_HOME or, failing that, the network; ``drop`` names prefixes that our network
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


def _torchvision_backbone(
    name: str,
    *,
    cut: Callable[[nn.Module], Cut],
    classifier: Callable[[int], nn.Module],
    cam_block: str,
    top_block: str,
    layout: Layout = MAPS,
    drop: tuple[str, ...] = (),
    **options: Any,
) -> Backbone:
    """Return a row whose network, weights and preprocessing are torchvision's."""
    return Backbone(
        name=name,
        build=partial(_torchvision_network, name, **options),
        cut=cut,
        classifier=classifier,
        pretrained=partial(_torchvision_state, name, drop=drop),
        cam_block=cam_block,
        top_block=top_block,
        geometry=partial(_torchvision_geometry, name),
        layout=layout,
    )


def _resnet_backbone(name: str, *, last: str, features: int = 2048) -> Backbone:
    """Build a row with Grad-CAM at the last residual block, 7 x 7: what the pooling before the classifier
    reads.
    """
    classifier = partial(linear, features)
    return _torchvision_backbone(
        name, cut=resnet, classifier=classifier, cam_block=last, top_block="layer4.0"
    )


def _lite0_geometry() -> Geometry:
    half = (0.5, 0.5, 0.5)
    return Geometry(resize=256, crop_height=224, crop_width=224, mean=half, std=half, interpolation="bicubic")


_LITE0 = Backbone(
    name="efficientnet_lite0",
    build=EfficientNetLite0,
    cut=lite0,
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
    _torchvision_backbone("densenet121", cut=densenet, classifier=partial(linear, 1024),
         cam_block="denseblock4", top_block="denseblock4"),
    _torchvision_backbone("googlenet", cut=googlenet, classifier=partial(linear, 1024),
         cam_block="inception5b", top_block="inception5a", drop=("aux1.", "aux2."),
         aux_logits=False, transform_input=True, init_weights=False),
    _torchvision_backbone("inception_v3", cut=inception_v3, classifier=partial(linear, 2048),
         cam_block="Mixed_7c", top_block="Mixed_7a", drop=("AuxLogits.",),
         aux_logits=False, transform_input=True, init_weights=False),
    # Before the last pooling: 14 x 14, four times the cells of what the classifier reads.
    _torchvision_backbone("vgg16_bn", cut=vgg, classifier=vgg_classifier,
         cam_block="conv5_3", top_block="conv5_1"),
    _torchvision_backbone("mobilenet_v2", cut=mobilenet, classifier=partial(dropout_linear, 1280),
         cam_block="features.18", top_block="features.15"),
    _torchvision_backbone("mobilenet_v3_small", cut=mobilenet,
         classifier=partial(hardswish_classifier, 576, 1024),
         cam_block="features.12", top_block="features.9"),
    _torchvision_backbone("mobilenet_v3_large", cut=mobilenet,
         classifier=partial(hardswish_classifier, 960, 1280),
         cam_block="features.16", top_block="features.13"),
    _torchvision_backbone("efficientnet_b0", cut=efficientnet, classifier=partial(dropout_linear, 1280),
         cam_block="top", top_block="stage7.0"),
    _torchvision_backbone("efficientnet_v2_s", cut=efficientnet, classifier=partial(dropout_linear, 1280),
         cam_block="top", top_block="stage6.14"),
    _torchvision_backbone("convnext_tiny", cut=convnext, classifier=partial(convnext_classifier, 768),
         cam_block="stage4.2", top_block="stage4.0"),
    _torchvision_backbone("regnet_y_400mf", cut=regnet, classifier=partial(linear, 440),
         cam_block="stage4.5", top_block="stage4.0"),
    # The last convolution, not the last shuffled unit: its channels are those that the classifier weighs.
    _torchvision_backbone("shufflenet_v2_x1_0", cut=shufflenet, classifier=partial(linear, 1024),
         cam_block="conv5", top_block="stage4.0"),
    # The last fire module: after the classifier's convolution each channel is a class already.
    _torchvision_backbone("squeezenet1_1", cut=squeezenet, classifier=squeezenet_classifier,
         cam_block="features.12", top_block="features.10"),
)  # fmt: skip

_TRANSFORMERS = (
    _torchvision_backbone("swin_t", cut=swin, classifier=partial(linear, 768), layout=CHANNELS_LAST,
         cam_block="stage4.1", top_block="stage4.0"),
    # Not the last layer: the head reads only its class token, so its patches have no gradient.
    _torchvision_backbone("vit_b_16", cut=vit, classifier=partial(linear, 768), layout=TOKENS,
         cam_block="layers.10", top_block="layers.10"),
)  # fmt: skip

DEFAULT_BACKBONE = "efficientnet_lite0"
"""The backbone whose weights come with a package, so that nothing is downloaded at run time."""

BACKBONES: dict[str, Backbone] = {row.name: row for row in (*_CONVOLUTIONAL, *_TRANSFORMERS)}
