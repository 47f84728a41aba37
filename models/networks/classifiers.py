"""The classifiers that networks of the table get for new classes, where the network's own would not serve.

Each takes the output of the network's pool, (N, features) unless it says otherwise, to logits (N, classes).
"""

from __future__ import annotations

from torch import nn
from torchvision.models.convnext import LayerNorm2d


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
