"""How torchvision's networks are cut into named blocks, and the classifier that each gets for new classes.

Each cut holds the very modules of the uncut network in the order of its forward, so that running the blocks
and then the head gives bit-equal logits. A pooling between two stages opens the later one, so that each
stage's own map keeps its size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.convnext import LayerNorm2d


@dataclass(frozen=True, slots=True)
class Cut:
    """A network as named blocks, a pooling without parameters, and a classifier; the last two are its
    head.
    """

    blocks: Mapping[str, nn.Module]
    pool: nn.Module
    classifier: nn.Module


def _pool() -> nn.Module:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def _stages(stages: Iterable[tuple[str, Iterable[nn.Module], nn.Module | None]]) -> dict[str, nn.Module]:
    """Return blocks ``name.index`` of stages given as (name, modules, what opens the stage)."""
    blocks: dict[str, nn.Module] = {}
    for name, modules, opening in stages:
        for index, module in enumerate(modules):
            opens = opening if index == 0 else None
            blocks[f"{name}.{index}"] = module if opens is None else nn.Sequential(opens, module)
    return blocks


# ---------------------------------------------------------------- classifiers for new classes


def linear(features: int, classes: int) -> nn.Module:
    """Return one linear layer on a pooled vector."""
    return nn.Linear(features, classes)


def dropout_linear(features: int, classes: int) -> nn.Module:
    """Return dropout of a fifth, then one linear layer."""
    return nn.Sequential(nn.Dropout(0.2), nn.Linear(features, classes))


def hardswish_classifier(features: int, hidden: int, classes: int) -> nn.Module:
    """Return the two layers of MobileNetV3."""
    return nn.Sequential(
        nn.Linear(features, hidden), nn.Hardswish(), nn.Dropout(0.2), nn.Linear(hidden, classes)
    )


def squeezenet_classifier(classes: int) -> nn.Module:
    """Return a 1 x 1 convolution, pooled after it."""
    # Without the ReLU of the original: it would clip logits at 0 and leave a losing class no gradient to
    # recover by.
    conv = nn.Conv2d(512, classes, kernel_size=1)
    nn.init.normal_(conv.weight, std=0.01)
    return nn.Sequential(nn.Dropout(0.5), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))


def vgg_classifier(classes: int) -> nn.Module:
    """Return the mean over the positions, then one linear layer."""
    # Not the 120 million weights of fc6 and fc7: drawn anew, a small data set could only overfit them.
    mean = (nn.Unflatten(1, (512, 7, 7)), nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return nn.Sequential(*mean, nn.Dropout(0.2), nn.Linear(512, classes))


def convnext_classifier(features: int, classes: int) -> nn.Module:
    """Return LayerNorm of the pooled vector, then one linear layer."""
    return nn.Sequential(LayerNorm2d(features, eps=1e-6), nn.Flatten(1), nn.Linear(features, classes))


# ---------------------------------------------------------------- residual networks


def resnet(network: Any) -> Cut:
    """Cut ResNet, ResNeXt, Wide ResNet (He et al. 2016; Xie et al. 2017; Zagoruyko & Komodakis 2016): stem,
    then each residual block.
    """
    stem = nn.Sequential(network.conv1, network.bn1, network.relu, network.maxpool)
    stages = [(name, getattr(network, name), None) for name in ("layer1", "layer2", "layer3", "layer4")]
    return Cut({"stem": stem} | _stages(stages), _pool(), network.fc)


def regnet(network: Any) -> Cut:
    """Cut RegNet (Radosavovic et al. 2020): stem, then each residual block of four stages."""
    stages = [(f"stage{n}", stage, None) for n, stage in enumerate(network.trunk_output, start=1)]
    return Cut({"stem": network.stem} | _stages(stages), _pool(), network.fc)


def convnext(network: Any) -> Cut:
    """Cut ConvNeXt (Liu et al. 2022): a downsampling opens each stage but the first."""
    layers = network.features
    stages = [("stage1", layers[1], None)]
    stages += [(f"stage{n}", layers[2 * n - 1], layers[2 * n - 2]) for n in (2, 3, 4)]
    return Cut({"stem": layers[0]} | _stages(stages), network.avgpool, network.classifier)


def densenet(network: Any) -> Cut:
    """Cut DenseNet (Huang et al. 2017): a dense block cannot be cut inside, for each of its layers reads all
    before it.
    """
    f = network.features
    # The network's own last ReLU works in place, which would overwrite the last block's value.
    last = nn.Sequential(f.transition3, f.denseblock4, f.norm5, nn.ReLU())
    blocks: dict[str, nn.Module] = {
        "stem": nn.Sequential(f.conv0, f.norm0, f.relu0, f.pool0),
        "denseblock1": f.denseblock1,
        "denseblock2": nn.Sequential(f.transition1, f.denseblock2),
        "denseblock3": nn.Sequential(f.transition2, f.denseblock3),
        "denseblock4": last,
    }
    return Cut(blocks, _pool(), network.classifier)


# ---------------------------------------------------------------- inception


class InputTransform(nn.Module):
    """A change from ImageNet's normalisation to the (x - 0.5) / 0.5 that GoogLeNet and Inception were trained
    with.
    """

    def __init__(self, transform: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.transform = transform

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to the same shape."""
        return self.transform(x)


def googlenet(network: Any) -> Cut:
    """Cut GoogLeNet (Szegedy et al. 2015): two convolution stages, then nine inception blocks."""
    blocks: dict[str, nn.Module] = {
        "conv1": nn.Sequential(InputTransform(network._transform_input), network.conv1, network.maxpool1),
        "conv2": network.conv2,
        "conv3": nn.Sequential(network.conv3, network.maxpool2),
    }
    opening = {"4a": network.maxpool3, "5a": network.maxpool4}
    for name in ("3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"):
        block = getattr(network, f"inception{name}")
        blocks[f"inception{name}"] = nn.Sequential(opening[name], block) if name in opening else block
    return Cut(blocks, _pool(), nn.Sequential(network.dropout, network.fc))


def inception_v3(network: Any) -> Cut:
    """Cut Inception v3 (Szegedy et al. 2016): five convolutions, then eleven inception blocks."""
    opening = {
        "Conv2d_1a_3x3": InputTransform(network._transform_input),
        "Conv2d_3b_1x1": network.maxpool1,
        "Mixed_5b": network.maxpool2,
    }
    convolutions = ("1a_3x3", "2a_3x3", "2b_3x3", "3b_1x1", "4a_3x3")
    names = [f"Conv2d_{name}" for name in convolutions]
    names += [f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")]
    blocks = {
        name: nn.Sequential(opening[name], getattr(network, name))
        if name in opening
        else getattr(network, name)
        for name in names
    }
    return Cut(blocks, _pool(), nn.Sequential(network.dropout, network.fc))


# ---------------------------------------------------------------- plain and mobile networks


def vgg(network: Any) -> Cut:
    """Cut VGG (Simonyan & Zisserman 2015): conv1_1 … conv5_3, each with its BatchNorm and ReLU."""
    blocks: dict[str, nn.Module] = {}
    stage, index, waiting = 1, 1, list[nn.Module]()
    for module in network.features:
        waiting.append(module)
        if isinstance(module, nn.MaxPool2d):
            stage, index = stage + 1, 1
        elif isinstance(module, nn.ReLU):
            blocks[f"conv{stage}_{index}"] = nn.Sequential(*waiting)
            index, waiting = index + 1, []
    # The last pooling is the head's, so that conv5_3 is seen at 14 x 14.
    return Cut(blocks, nn.Sequential(*waiting, network.avgpool, nn.Flatten(1)), network.classifier)


def mobilenet(network: Any) -> Cut:
    """Cut MobileNetV2 and V3 (Sandler et al. 2018; Howard et al. 2019): features.0, features.1, …"""
    blocks = {f"features.{index}": block for index, block in enumerate(network.features)}
    return Cut(blocks, _pool(), network.classifier)


def efficientnet(network: Any) -> Cut:
    """Cut EfficientNet and V2 (Tan & Le 2019, 2021): stem, each MBConv block of each stage, top."""
    stages = [(f"stage{n}", stage, None) for n, stage in enumerate(network.features[1:-1], start=1)]
    blocks = {"stem": network.features[0], **_stages(stages), "top": network.features[-1]}
    return Cut(blocks, _pool(), network.classifier)


def lite0(network: Any) -> Cut:
    """Cut EfficientNet-Lite0 as :mod:`models.networks.efficientnet_lite0` builds it."""
    cut = efficientnet(network)
    return Cut(cut.blocks, network.pool, nn.Sequential(network.dropout, network.classifier))


def squeezenet(network: Any) -> Cut:
    """Cut SqueezeNet (Iandola et al. 2016): the classifier is a convolution, pooled after it."""
    # The first ReLU works in place, on its convolution's output: one block, so that no block's value is
    # overwritten.
    blocks: dict[str, nn.Module] = {"stem": network.features[:3]}
    blocks |= {f"features.{index}": network.features[index] for index in range(3, len(network.features))}
    return Cut(blocks, nn.Identity(), nn.Sequential(network.classifier, nn.Flatten(1)))


class MeanOverPositions(nn.Module):
    """The pooling of ShuffleNet; its sums are not those of AdaptiveAvgPool2d to the last bit."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to (N, C)."""
        return x.mean([2, 3])


def shufflenet(network: Any) -> Cut:
    """Cut ShuffleNet V2 (Ma et al. 2018): stem, each unit of three stages, and a last convolution."""
    stages = [(name, getattr(network, name), None) for name in ("stage2", "stage3", "stage4")]
    stem = nn.Sequential(network.conv1, network.maxpool)
    return Cut({"stem": stem, **_stages(stages), "conv5": network.conv5}, MeanOverPositions(), network.fc)


# ---------------------------------------------------------------- transformers


def swin(network: Any) -> Cut:
    """Cut Swin (Liu et al. 2021): patches are merged at the opening of each stage but the first.

    The network's last LayerNorm closes the last block, so that it is trained and frozen with it.
    """
    layers = network.features
    stages = [("stage1", layers[1], None)]
    stages += [(f"stage{n}", layers[2 * n - 1], layers[2 * n - 2]) for n in (2, 3, 4)]
    blocks: dict[str, nn.Module] = {"stem": layers[0]} | _stages(stages)
    last = next(reversed(blocks))
    blocks[last] = nn.Sequential(blocks[last], network.norm)
    pool = nn.Sequential(network.permute, nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
    return Cut(blocks, pool, network.head)


class PatchTokens(nn.Module):
    """An image as tokens: one for the class, then one a patch, each with its place added."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.conv_proj = network.conv_proj
        self.class_token = network.class_token
        self.pos_embedding = network.encoder.pos_embedding
        self.dropout = network.encoder.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 1 + patches, channels)."""
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)
        placed: Tensor = self.dropout(tokens + self.pos_embedding)
        return placed


class ClassToken(nn.Module):
    """A pooling that takes the class token, which the head of a vision transformer reads."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, tokens, channels) to (N, channels)."""
        return x[:, 0]


def vit(network: Any) -> Cut:
    """Cut a vision transformer (Dosovitskiy et al. 2021): tokens, then each encoder layer."""
    layers = list(network.encoder.layers)
    layers[-1] = nn.Sequential(layers[-1], network.encoder.ln)
    blocks = {"stem": PatchTokens(network)} | {f"layers.{n}": layer for n, layer in enumerate(layers)}
    return Cut(blocks, ClassToken(), network.heads)
