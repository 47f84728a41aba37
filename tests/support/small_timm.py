"""A small network of timm that a plain loop fits to pictures, and a folder of it as the hub has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from torch import nn

from models.networks.library import library_geometry
from pipelines.data.dataset import Dataset

NAME = "test_resnet"


def fitted_network(data: Dataset, classes: Sequence[str]) -> nn.Module:
    """Return the network, fitted to training and validation pictures, with its classes in this order."""
    torch.manual_seed(0)
    network = timm.create_model(NAME, num_classes=len(classes))
    samples = [*data.train, *data.val]
    x = library_geometry(f"timm:{NAME}").prepare_files(sample.path for sample in samples)
    y = torch.tensor([classes.index(data.classes[sample.label]) for sample in samples])
    optimiser = torch.optim.AdamW(network.parameters(), 3e-3)
    network.train()
    for _ in range(16):
        for part in torch.randperm(len(x)).split(16):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(x[part]), y[part]).backward()
            optimiser.step()
    return network.eval()


def write_hub_folder(network: nn.Module, classes: Sequence[str], folder: Path) -> Path:
    """Write the network as timm saves it for the Hugging Face hub."""
    save_file(network.state_dict(), folder / "model.safetensors")
    config = {
        "architecture": NAME,
        "num_classes": len(classes),
        "label_names": list(classes),
        "pretrained_cfg": timm.get_pretrained_cfg(NAME).to_dict(),
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder
