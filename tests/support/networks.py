"""The networks that tests run through: one or two of each family in make test, all of them in make soak."""

from __future__ import annotations

import pytest

from models.networks.registry import BACKBONES

LARGER_MEMBERS = {
    "resnet34", "resnet101", "wide_resnet50_2", "resnext50_32x4d", "mobilenet_v3_large", "efficientnet_v2_s",
}  # fmt: skip
"""Networks that are cut by the same function as a smaller one of the table."""
NETWORKS = [
    pytest.param(name, marks=pytest.mark.soak) if name in LARGER_MEMBERS else name for name in BACKBONES
]
