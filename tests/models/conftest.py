"""Networks of every row that behave like trained ones, without any download."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.images.geometry import Geometry
from models.networks.backbone import Backbone
from models.networks.registry import get_backbone, imagenet_classes
from models.networks.transfer_model import TransferModel


def batch(n: int = 1, seed: int = 0, side: int = 224) -> torch.Tensor:
    """Random pictures (n, 3, side, side)."""
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


def live_network(name: str) -> nn.Module:
    """The uncut network of a row: the embedded one with its weights, any other with random ones whose
    BatchNorms know the signals of random pictures and whose head is not all zero, as a fresh one's may be.
    """
    torch.manual_seed(0)
    row = get_backbone(name)
    if name == "efficientnet_lite0":
        return row.network()
    network = row.network("none")
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = None
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.05)
    with torch.no_grad():
        network.train()(batch(4, seed=99, side=row.geometry().crop_height if name == "vit_b_16" else 160))
    return network.eval()


def live_model(name: str) -> TransferModel:
    """The same cut into blocks, with the 1,000 ImageNet classes."""
    row = get_backbone(name)
    model = TransferModel(row, live_network(name), classes=imagenet_classes(), keep_classifier=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def random_batch() -> Callable[..., torch.Tensor]:
    return batch


@pytest.fixture(scope="session")
def network_of() -> Callable[[str], nn.Module]:
    return live_network


@pytest.fixture(scope="session")
def model_of() -> Callable[[str], TransferModel]:
    return live_model


@pytest.fixture(scope="session")
def resnet18() -> TransferModel:
    return live_model("resnet18")


class Watch(nn.Module):
    """Lets the mean colour of one rectangle of the picture through, and nothing else."""

    def __init__(self, side: int, box: tuple[int, int, int, int]) -> None:
        super().__init__()
        x0, y0, x1, y1 = box
        self.register_buffer("mask", torch.zeros(1, 1, side, side))
        self.mask[:, :, y0:y1, x0:x1] = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1, keepdim=True) * self.mask


class WatchNetwork(nn.Module):
    def __init__(self, side: int, box: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.see = Watch(side, box)
        self.head = nn.Linear(1, 2)
        nn.init.constant_(self.head.bias, 0.0)
        self.head.weight.data = torch.tensor([[-40.0], [40.0]])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.see(x).mean((2, 3)))


def watching(box: tuple[int, int, int, int], *, side: int = 32) -> TransferModel:
    """A model that says "bright" or "dark" of one rectangle (x0, y0, x1, y1): what a true map must show."""
    half = (0.5, 0.5, 0.5)
    row = Backbone(
        name="watch",
        build=lambda outputs: WatchNetwork(side, box),
        blocks={"see": "see"},
        classifier=lambda classes: nn.Linear(1, classes),
        pretrained=dict,
        cam_block="see",
        top_block="see",
        geometry=lambda: Geometry(side, side, side, half, half, "bilinear"),
    )
    model = TransferModel(row, row.network("none"), classes=["dark", "bright"], keep_classifier=True)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="session")
def watcher() -> Callable[..., TransferModel]:
    return watching
