"""Networks of timm and torchvision by name: preprocessing, blocks, bundles."""

from __future__ import annotations

import json
import shutil

import pytest
import timm
import torch

from models.bundle import MANIFEST_FILE, _manifest_digest, load_bundle, save_bundle
from models.errors import BundleError, UnknownChoice
from models.networks.adoption import adopt
from models.networks.library import installed_names, library_geometry
from models.networks.registry import get_backbone
from models.networks.summary import summarize_network
from models.networks.transfer_model import TransferModel

NAMES = [
    "timm:resnet10t",
    "timm:test_vit",
    pytest.param("timm:eva02_tiny_patch14_224", marks=pytest.mark.soak),
    pytest.param("torchvision:regnet_x_400mf", marks=pytest.mark.soak),
]
CONFIGURED = ["convnext_atto", "vit_tiny_patch16_224", "efficientnet_b0", "mixer_b16_224"]


@pytest.mark.parametrize(
    "name", ["convnext_atto", "vit_tiny_patch16_224", "efficientnet_b0", "mixer_b16_224"]
)
def test_preprocessing_is_what_timm_itself_would_do(name):
    config = timm.data.resolve_data_config(timm.get_pretrained_cfg(name).to_dict())
    geometry = library_geometry(f"timm:{name}")
    assert (geometry.crop_height, geometry.crop_width) == config["input_size"][1:]
    assert (geometry.mean, geometry.std) == (config["mean"], config["std"])
    assert geometry.resize == int(config["input_size"][1] / config["crop_pct"])
    assert geometry.interpolation == config["interpolation"]


def test_names_are_those_of_the_libraries_and_close_ones_are_offered():
    assert {"timm:convnext_atto", "torchvision:vit_b_16"} <= set(installed_names())
    assert len(installed_names()) > 1000
    with pytest.raises(UnknownChoice, match="convnext_atto"):
        get_backbone("timm:convnext_ato")
    with pytest.raises(UnknownChoice, match="timm:NAME"):
        get_backbone("convnext_ato")


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_of_a_library_network_answers_the_same_when_it_is_loaded(name, tmp_path):
    model = TransferModel.create(name, ["a", "b", "c"], pretraining="none", view="whole")
    save_bundle(model, tmp_path / "bundle", name="any")
    loaded = load_bundle(tmp_path / "bundle").model
    x = torch.randn(2, 3, model.geometry.crop_height, model.geometry.crop_width)
    assert torch.equal(loaded(x), model(x))
    assert loaded.block_names == model.block_names
    assert loaded.cam_block == model.cam_block
    assert [loaded.layout(block) for block in loaded.block_names] == [
        model.layout(block) for block in model.block_names
    ]
    own = sum(weights.numel() for weights in model.parameters())
    assert summarize_network(loaded).parameters == pytest.approx(own, rel=0.02)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "bundle"
    save_bundle(TransferModel.create("timm:resnet10t", ["a", "b"], pretraining="none"), folder, name="any")
    return folder


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "timm:no_such_network"),
        ("backbone", "timm:../../etc"),
        ("backbone", "os:system"),
        ("backbone", "timm:resnet18"),
        ("blocks", []),
        ("blocks", ["conv1", "nowhere"]),
        ("cam_block", "nowhere"),
        ("top_block", None),
        ("layouts", {}),
        ("layouts", {"conv1": {"name": "tokens", "rows": -1}}),
        ("layouts", {"conv1": {"name": "import os"}}),
    ],
)
def test_a_manifest_that_describes_no_network_is_refused(key, value, saved, tmp_path):
    shutil.copytree(saved, tmp_path / "bundle")
    path = tmp_path / "bundle" / MANIFEST_FILE
    manifest = json.loads(path.read_text()) | {key: value}
    manifest["digest"] = _manifest_digest(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError):
        load_bundle(tmp_path / "bundle")


def test_a_network_that_was_adopted_as_an_object_is_not_saved(tmp_path):
    geometry = library_geometry("timm:test_resnet")
    model = adopt(timm.create_model("test_resnet", num_classes=2), classes=["a", "b"], geometry=geometry)
    with pytest.raises(BundleError, match="adopted as an object"):
        save_bundle(model, tmp_path / "bundle", name="any")
    assert not (tmp_path / "bundle").exists()


def test_a_cut_keeps_no_values_of_the_picture_that_it_was_traced_with():
    model = TransferModel.create("timm:test_vit", ["a", "b"], pretraining="none")
    graphs = [module for module in model.modules() if isinstance(module, torch.fx.GraphModule)]
    assert graphs
    assert not any("value" in node.meta for graph in graphs for node in graph.graph.nodes)


def test_another_version_of_the_library_is_named_where_the_logits_are_others(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "bundle")
    path = tmp_path / "bundle" / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    manifest["library"]["version"] = "0.4.1"
    manifest["probe"]["logits"][0] += 1
    manifest["digest"] = _manifest_digest(manifest)
    path.write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"off by .* It was saved with timm 0\.4\.1; .* is installed"):
        load_bundle(tmp_path / "bundle")


def test_weights_of_before_the_blocks_were_cut_by_the_graph_are_loaded(tmp_path):
    """A vision transformer's first block had other names for its weights."""
    from safetensors.torch import load_file, save_file

    from models.bundle import WEIGHTS_FILE, _sha256

    model = TransferModel.create("vit_b_16", ["a", "b"], pretraining="none")
    save_bundle(model, tmp_path / "bundle", name="any")
    weights = tmp_path / "bundle" / WEIGHTS_FILE
    renamed = {new: old for old, new in model.backbone.renamed.items()}
    old = {
        next((o + key.removeprefix(n) for n, o in renamed.items() if key.startswith(n)), key): value
        for key, value in load_file(weights).items()
    }
    assert "blocks.stem.class_token" in old
    save_file(old, weights)
    path = tmp_path / "bundle" / MANIFEST_FILE
    manifest = json.loads(path.read_text())
    manifest["files"][WEIGHTS_FILE] = _sha256(weights.read_bytes())
    manifest["digest"] = _manifest_digest(manifest)
    path.write_text(json.dumps(manifest))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.equal(load_bundle(tmp_path / "bundle").model(x), model(x))
