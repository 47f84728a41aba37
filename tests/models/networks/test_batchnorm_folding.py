"""Folding BatchNorm changes no value of any network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.networks.batchnorm_folding import fold_batchnorm, frozen_prefix
from models.networks.transfer_model import TransferModel
from tests.support.networks import NETWORKS


@pytest.mark.parametrize("name", NETWORKS)
def test_every_backbone_folds_to_the_same_values(name):
    torch.manual_seed(0)
    pretraining = "imagenet" if name == "efficientnet_lite0" else "none"
    model = TransferModel.create(name, ["a", "b"], pretraining=pretraining)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and pretraining == "none":
            # As after training: statistics that a wrong fold could not hide behind.
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    level = len(model.block_names)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    prefix = frozen_prefix(model, level)
    x = torch.randn(3, 3, 224, 224)
    with torch.no_grad():
        expected, found = model.run_blocks(x, 0, level), prefix(x)
    assert float((found - expected).abs().max()) <= 1e-4 * max(float(expected.abs().max()), 1.0)
    norms = [module for module in prefix.modules() if isinstance(module, nn.BatchNorm2d)]
    # DenseNet normalises what several layers gave before it convolves it: those norms follow no convolution.
    assert len(norms) == (62 if name == "densenet121" else 0), "all that follow a convolution were folded"
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in prefix.parameters())


def test_what_cannot_be_folded_is_kept_as_it_is():
    class Backwards(nn.Module):
        """Defines convolution and norm in the order opposite to their use."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)
            self.norm.running_mean.fill_(2.0)

        def forward(self, x):
            return self.conv(self.norm(x))

    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    model.blocks["stem"] = Backwards()
    prefix = frozen_prefix(model, 1)
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(prefix(x), model.eval().run_blocks(x, 0, 1))
        wrong = fold_batchnorm(model.blocks["stem"])(x)
    assert not torch.allclose(wrong, prefix(x), atol=1e-2)
