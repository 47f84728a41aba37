"""What the tests of the service share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from models.bundle import load_bundle, save_bundle
from models.networks.transfer_model import TransferModel
from tests.support import corpus as odd_files


@pytest.fixture(scope="session")
def corpus() -> ModuleType:
    """The module that makes odd files."""
    return odd_files


@pytest.fixture(scope="session")
def bee(photos: Path) -> bytes:
    return sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0].read_bytes()


@pytest.fixture(scope="session")
def second(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same classes, whose scores differ."""
    model: TransferModel = load_bundle(bundle_folder).model
    with torch.no_grad():
        model.classifier[1].bias += torch.tensor([3.0, 0.0, -1.0])
    folder = tmp_path_factory.mktemp("bundles") / "second"
    save_bundle(model, folder, name="second")
    return folder


@pytest.fixture(scope="session")
def turned() -> Callable[[Path, Path], None]:
    """The function that points a link at another folder in one step."""

    def turn(link: Path, folder: Path) -> None:
        aside = link.with_name("aside")
        aside.symlink_to(folder, target_is_directory=True)
        aside.replace(link)

    return turn
