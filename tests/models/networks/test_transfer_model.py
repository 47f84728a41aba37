"""A transfer model freezes prefixes, and its frozen prefix changes no bit."""

from __future__ import annotations

import pytest
import torch

from models.errors import UnknownChoice
from models.networks.transfer_model import HEAD, TransferModel
from tests.support.networks import NETWORKS


def bytes_of(module: torch.nn.Module) -> dict[str, bytes]:
    return {key: value.contiguous().numpy().tobytes() for key, value in module.state_dict().items()}


def train_a_little(model: TransferModel, steps: int = 3) -> None:
    model.train()
    optimiser = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1
    )
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        side = 224 if model.backbone.name == "vit_b_16" else 96
        x = torch.randn(4, 3, side, side, generator=generator) * 3 + 1
        loss = torch.nn.functional.cross_entropy(model(x), torch.tensor([0, 1, 2, 0]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("where", ["head", "top"])
def test_the_frozen_prefix_does_not_change_by_one_bit(name, where):
    torch.manual_seed(0)
    model = TransferModel.create(name, ["a", "b", "c"], pretraining="none")
    boundary = HEAD if where == "head" else model.backbone.top_block
    model.freeze_below(boundary, batch_norm_frozen=False)
    before = bytes_of(model)
    train_a_little(model)
    after = bytes_of(model)
    frozen = tuple(f"blocks.{block.replace('.', '_')}." for block in model.block_names[: model.frozen_blocks])
    changed = {key for key in after if after[key] != before[key]}
    assert not [key for key in changed if key.startswith(frozen)]
    assert any(key.startswith("classifier") for key in changed)
    if where == "top":
        assert any(key.startswith("blocks.") for key in changed), "the unfrozen blocks train"


def test_frozen_batch_norm_keeps_its_statistics_while_its_scale_trains():
    model = TransferModel.create("resnet18", ["a", "b", "c"], pretraining="none")
    model.freeze_below("layer4.0", batch_norm_frozen=True)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    train_a_little(model)
    after = model.state_dict()
    for key in after:
        if "running" in key or "num_batches" in key:
            assert torch.equal(before[key], after[key]), key
    assert not torch.equal(before["blocks.layer4_1.bn2.weight"], after["blocks.layer4_1.bn2.weight"])


def test_train_mode_spares_what_is_frozen_and_comes_back():
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    model.freeze_below("layer4.0")
    model.train()
    assert not model.blocks["layer3_1"].training
    assert model.blocks["layer4_0"].training
    assert not model.blocks["layer4_0"].bn1.training
    model.eval()
    assert not any(module.training for module in model.modules())


@torch.no_grad()
@pytest.mark.parametrize("boundary", ["head", "layer4.0", "stem"])
def test_prefix_and_rest_make_the_whole(boundary):
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    x = torch.randn(2, 3, 64, 64)
    expected = model(x)
    model.freeze_below(boundary)
    model.eval()
    assert torch.equal(model.trainable_rest(model.raise_to(x, model.frozen_blocks)), expected)


def test_groups_run_from_the_lowest_trained_block_to_the_head():
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    model.freeze_below("layer4.0")
    assert [name for name, _ in model.trainable_groups()] == ["layer4.0", "layer4.1", "head"]
    counted = sum(p.numel() for _, params in model.trainable_groups() for p in params)
    assert counted == sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_an_unknown_block_names_the_choices():
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    with pytest.raises(UnknownChoice, match=r"layer4\.1"):
        model.until("layer9", torch.zeros(1, 3, 64, 64))
    with pytest.raises(UnknownChoice, match=r"layer4\.1"):
        model.freeze_below("layer9")
