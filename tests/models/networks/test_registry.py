"""Every network of the table: the cut one is the uncut one, to the bit."""

from __future__ import annotations

import json

import pytest
import timm
import torch

from models.errors import UnknownChoice, WeightsUnavailable
from models.images.decode import read_image
from models.networks.predictions import rank_classes
from models.networks.registry import BACKBONES, get_backbone, imagenet_classes
from models.networks.transfer_model import TransferModel
from tests.support.networks import NETWORKS


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request, network_of):
    """(uncut network, the same network cut into blocks)."""
    network = network_of(request.param)
    row = get_backbone(request.param)
    return network, TransferModel(row, network, classes=imagenet_classes(), keep_classifier=True).eval()


def pictures(model: TransferModel, count: int, seed: int) -> torch.Tensor:
    """Random ones, smaller where the network takes any size: there are many rows."""
    side = 224 if model.backbone.name == "vit_b_16" else 160
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def test_cut_logits_are_bit_equal_to_the_uncut_network(pair):
    network, model = pair
    x = pictures(model, 2, 1)
    assert torch.equal(model(x), network(x))


@torch.no_grad()
def test_until_and_after_meet_at_every_block(pair):
    _, model = pair
    x = pictures(model, 1, 2)
    logits = model(x)
    for block in model.block_names:
        assert torch.equal(model.after(block, model.until(block, x)), logits), block


@torch.no_grad()
def test_no_later_block_overwrites_an_earlier_ones_value(pair):
    _, model = pair
    x = pictures(model, 1, 3)
    kept = [(name, value, value.clone()) for name, value in model.walk(x)]
    assert [name for name, _, _ in kept] == [*model.block_names, "head"]
    for name, value, copy in kept:
        assert torch.equal(value, copy), f"{name} was changed in place by a later block"


@torch.no_grad()
def test_reading_a_value_as_a_map_and_back_changes_nothing(pair):
    _, model = pair
    layout = model.backbone.layout
    for _, value in list(model.walk(pictures(model, 1, 3)))[:-1]:
        grid = layout.to_map(value)
        assert grid.ndim == 4
        assert torch.equal(layout.from_map(grid, value), value)


@torch.no_grad()
def test_a_new_classifier_answers_for_its_classes(pair):
    _, model = pair
    small = TransferModel.create(model.backbone.name, ["a", "b", "c"], pretraining="none")
    assert small(pictures(model, 1, 4)).shape == (1, 3)


@torch.no_grad()
def test_the_cam_and_top_blocks_are_maps_of_the_model(pair):
    _, model = pair
    assert model.backbone.top_block in model.block_names
    side = model.geometry.crop_height
    activation = model.as_map(model.cam_block, model.until(model.cam_block, torch.randn(1, 3, side, side)))
    assert activation.ndim == 4
    assert min(activation.shape[-2:]) >= 7


@torch.no_grad()
def test_the_embedded_network_is_timms_with_the_packaged_weights():
    row = get_backbone("efficientnet_lite0")
    peer = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    peer.load_state_dict(dict(zip(peer.state_dict(), row.pretrained().values(), strict=True)))
    for side in (224, 201):
        x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        torch.testing.assert_close(row.network()(x), peer(x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("folder", "names"),
    [
        ("hymenoptera/val/ants", {"ant"}),
        ("hymenoptera/val/bees", {"bee"}),
        ("caltech_animals/val/elephant", {"African elephant", "Indian elephant", "tusker"}),
        ("caltech_animals/val/flamingo", {"flamingo"}),
    ],
)
def test_the_packaged_weights_know_real_photographs(imagenet, photos, folder, names):
    pictures = sorted((photos / folder).glob("*.jpg"))[:24]
    x = torch.stack([imagenet.geometry.prepare(read_image(path))[0] for path in pictures])
    with torch.no_grad():
        found = [rank_classes(logits, imagenet.classes, imagenet.scoring)[0].label for logits in imagenet(x)]
    hits = sum(label in names for label in found) / len(found)
    assert hits >= 0.55, f"only {hits:.0%} of {folder} are {names}: {found}"


def test_missing_weights_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsUnavailable) as caught:
        get_backbone("resnet18").network()
    for wanted in ("resnet18", str(tmp_path), "TORCH_HOME", "efficientnet_lite0"):
        assert wanted in str(caught.value)


def test_cached_weights_are_used_without_a_network(tmp_path, monkeypatch):
    row = get_backbone("squeezenet1_1")
    weights = torch.hub.get_dir()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    torch.manual_seed(5)
    state = row.build(1000).state_dict()
    torch.save(state, folder / "squeezenet1_1-b8a52dc0.pth")
    loaded = row.network()
    assert weights != str(tmp_path)
    assert all(torch.equal(value, state[key]) for key, value in loaded.state_dict().items())


def test_an_unknown_backbone_names_the_choices():
    with pytest.raises(UnknownChoice, match="efficientnet_lite0"):
        get_backbone("resnet19")


def test_geometry_of_each_row_is_plain_data():
    for row in BACKBONES.values():
        assert json.loads(json.dumps(row.geometry().to_dict()))["crop_height"] in (224, 299, 384)
