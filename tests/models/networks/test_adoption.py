"""Networks of transformers, exported programs, a user's own code: the same logits, cut, saved and loaded."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import numpy as np
import pytest
import torch
from captum.attr import LayerGradCam
from safetensors.torch import save_file
from torch import nn
from torchvision import models as torchvision_models

from models import image_from_array
from models.bundle import load_bundle, save_bundle
from models.errors import BundleError, ConfigError, ExplanationError, UnknownChoice
from models.explainer import Explainer, ExplainOptions
from models.images.geometry import Geometry
from models.networks.adoption import adopt, adopt_source
from models.networks.description import read_backbone
from models.networks.exported import ALLOW, PROGRAM_FILE, export_network
from models.networks.summary import summarize_network
from models.networks.transformers_networks import build_transformers, preprocessor_geometry

transformers = pytest.importorskip("transformers", reason="needs transformers")

CLASSES = ["ant", "bee", "wasp"]
SIZE = 64
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
GEOMETRY = {"mean": MEAN, "std": STD, "crop_height": SIZE, "crop_width": SIZE, "resize": SIZE}
VIT = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 96,
       "image_size": SIZE, "patch_size": 8}  # fmt: skip
KINDS = {
    "ViT": (VIT, "vit.layers.1", "tokens"),
    "DeiT": (VIT, "deit.layers.1", "tokens"),
    "Swin": (
        {"embed_dim": 16, "depths": [1, 1, 1], "num_heads": [2, 2, 4], "image_size": SIZE, "patch_size": 2,
         "window_size": 4},
        "swin.encoder.layers.1", "tokens",
    ),
    "ConvNext": (
        {"depths": [1, 1, 2, 1], "hidden_sizes": [12, 24, 48, 96], "image_size": SIZE},
        "convnext.encoder.stages.2.layers.1", "maps",
    ),
    "ResNet": (
        {"depths": [1, 1, 1, 1], "hidden_sizes": [16, 32, 64, 96], "embedding_size": 16},
        "resnet.encoder.stages.2", "maps",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def image():
    return image_from_array(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


def hub_folder(folder, kind):
    """A folder as save_pretrained leaves it, and transformers' own network."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(
        **KINDS[kind][0],
        id2label=dict(enumerate(CLASSES)),
        label2id=dict(zip(CLASSES, range(3), strict=True)),
    )
    network = getattr(transformers, f"{kind}ForImageClassification")(config).eval()
    network.save_pretrained(folder)
    preprocessor = {"do_resize": True, "size": {"height": SIZE, "width": SIZE}, "resample": 3,
                    "do_normalize": True, "image_mean": MEAN, "image_std": STD}  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return network


@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_transformers_is_adopted_saved_and_explained(kind, tmp_path, image):
    network = hub_folder(tmp_path / "hub", kind)
    model = adopt_source(str(tmp_path / "hub"), weights=None, classes=None).model
    _, cam_block, layout = KINDS[kind]
    assert model.classes == CLASSES
    assert (model.cam_block, model.layout(model.cam_block).name) == (cam_block, layout)
    assert (model.geometry.view, model.geometry.interpolation) == ("whole", "bicubic")
    x = model.geometry.prepare(image)[0][None]
    with torch.no_grad():
        expected = network(pixel_values=x).logits
    torch.testing.assert_close(model(x), expected, atol=1e-5, rtol=1e-5)
    save_bundle(model, tmp_path / "bundle", name="mine")
    bundle = load_bundle(tmp_path / "bundle")
    torch.testing.assert_close(bundle.model(x), expected, atol=1e-5, rtol=1e-5)
    explanation = Explainer(bundle).explain(image)
    assert explanation.predictions[0].index == int(expected.argmax())
    assert explanation.attributions[0].block == cam_block
    assert len(summarize_network(bundle.model).blocks) == len(bundle.model.block_names)


def test_a_manifest_with_another_config_is_refused(tmp_path):
    hub_folder(tmp_path / "hub", "ViT")
    model = adopt_source(str(tmp_path / "hub"), weights=None, classes=None).model
    save_bundle(model, tmp_path / "bundle", name="mine")
    manifest = json.loads((tmp_path / "bundle/bundle.json").read_text())
    for config in (
        {},
        {"architectures": ["os.system"]},
        {"architectures": ["SwinForImageClassification"]},
        3,
    ):
        with pytest.raises(BundleError):
            read_backbone(manifest | {"network_config": config}, bytes)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({}, "an image classifier's end with ForImageClassification"),
        ({"architectures": ["BertModel"]}, "an image classifier's end with"),
        ({"architectures": ["NoSuchForImageClassification"]}, "NoSuchForImageClassification"),
        ({"architectures": ["ViTForImageClassification"], "hidden_size": "wide"}, "cannot build"),
        ({"architectures": ["ViTForImageClassification"], "num_hidden_layers": 10**7}, "1,000 at most"),
        ({"architectures": ["ViTForImageClassification"], "hidden_size": 10**9}, "100,000 at most"),
        ({"architectures": ["ResNetForImageClassification"], "depths": [1] * 5000}, "1,000 at most"),
        ({"architectures": ["ResNetForImageClassification"], "depths": [1, 10**6]}, "1,000 at most"),
    ],
)
def test_a_config_that_builds_nothing_is_a_sentence(config, reason):
    with pytest.raises((ConfigError, UnknownChoice), match=reason):
        build_transformers(config, 3)


@pytest.mark.parametrize(
    ("preprocessor", "expected"),
    [
        (
            {"size": {"shortest_edge": 224}, "crop_pct": 0.875, "resample": 3},
            (256, 224, 224, "crop", "bicubic"),
        ),
        ({"size": {"height": 192, "width": 256}}, (256, 192, 256, "whole", "bilinear")),
        ({"size": 224}, (224, 224, 224, "whole", "bilinear")),
        (
            {
                "size": {"shortest_edge": 256},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
            },
            (256, 224, 224, "crop", "bilinear"),
        ),
    ],
)
def test_preprocessing_is_read_from_the_preprocessor(preprocessor, expected):
    geometry = preprocessor_geometry({**preprocessor, "image_mean": MEAN, "image_std": STD})
    assert (
        geometry.resize, geometry.crop_height, geometry.crop_width, geometry.view, geometry.interpolation,
    ) == expected  # fmt: skip
    assert (geometry.mean, geometry.std) == (MEAN, STD)


@pytest.mark.parametrize(
    "preprocessor", [{}, {"size": "big"}, {"size": {}, "image_mean": MEAN, "image_std": STD}]
)
def test_a_preprocessor_that_does_not_say_is_a_sentence(preprocessor):
    with pytest.raises(ConfigError, match="does not say how pictures are prepared"):
        preprocessor_geometry(preprocessor)


# ---------------------------------------------------------------- exported programs


def own_network() -> nn.Module:
    torch.manual_seed(0)
    return torchvision_models.resnet18(num_classes=len(CLASSES)).eval()


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "mine.pt2"
    path.write_bytes(export_network(own_network(), torch.zeros(1, 3, SIZE, SIZE)))
    return path


def test_a_program_is_not_loaded_unless_that_is_allowed(program, monkeypatch):
    monkeypatch.delenv(ALLOW, raising=False)
    with pytest.raises(BundleError, match=r"not safe against a hostile .* set LUCIDA_ALLOW_EXPORTED"):
        adopt_source(str(program), weights=None, classes=CLASSES, geometry=GEOMETRY)


def test_a_program_is_adopted_saved_loaded_and_explained(program, tmp_path, image, monkeypatch):
    monkeypatch.setenv(ALLOW, "true")
    model = adopt_source(str(program), weights=None, classes=CLASSES, geometry=GEOMETRY).model
    assert model.block_names[:2] == ("conv1", "layer1.0")
    assert model.geometry.crop_height == SIZE
    save_bundle(model, tmp_path / "bundle", name="mine")
    bundle = load_bundle(tmp_path / "bundle")
    network = own_network()
    x = model.geometry.prepare(image)[0][None]
    with torch.no_grad():
        torch.testing.assert_close(bundle.model(x), network(x), atol=1e-5, rtol=1e-5)
    explainer = Explainer(bundle)
    options = ExplainOptions(target="bee")
    ours = explainer.explain(image, options).attributions[0].values
    theirs = (
        LayerGradCam(network, network.get_submodule(model.cam_block))
        .attribute(x, target=1)[0, 0]
        .detach()
        .numpy()
    )
    assert np.abs(ours - theirs).max() <= 1e-5 * max(1.0, np.abs(theirs).max())
    with pytest.raises(ExplanationError, match="no ReLU can be told"):
        explainer.explain(image, ExplainOptions(method="guided_grad_cam"))
    for method in ("hires_cam", "occlusion", "integrated_gradients"):
        explainer.explain(image, ExplainOptions(method=method, quick=True))
    assert summarize_network(bundle.model).blocks
    monkeypatch.delenv(ALLOW)
    with pytest.raises(BundleError, match="LUCIDA_ALLOW_EXPORTED"):
        load_bundle(tmp_path / "bundle")
    monkeypatch.setenv(ALLOW, "true")
    (tmp_path / "bundle" / PROGRAM_FILE).write_bytes(b"other")
    with pytest.raises(BundleError, match="does not have the digest"):
        load_bundle(tmp_path / "bundle")


def test_a_network_of_too_many_weights_is_not_built_to_be_exported(tmp_path):
    hub_folder(tmp_path / "hub", "Swin")
    model = adopt_source(str(tmp_path / "hub"), weights=None, classes=None).model
    assert model.backbone.is_exported
    config = {**model.backbone.description["network_config"], "embed_dim": 4096, "depths": [2, 2, 18]}
    backbone = read_backbone(
        {
            "backbone": model.backbone.name, "blocks": list(model.block_names), "cam_block": model.cam_block,
            "top_block": model.backbone.top_block, "geometry": model.geometry.to_dict(), "by_export": True,
            "layouts": {name: asdict(model.layout(name)) for name in model.block_names},
            "network_config": config,
        },
        bytes,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="1,000,000,000 are the most here"):
        backbone.network("none", 3)


def test_whether_programs_are_allowed_may_be_said_in_the_call(program, tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOW, "on")
    model = adopt_source(str(program), weights=None, classes=CLASSES, geometry=GEOMETRY).model
    save_bundle(model, tmp_path / "bundle", name="mine")
    with pytest.raises(BundleError, match="LUCIDA_ALLOW_EXPORTED"):
        load_bundle(tmp_path / "bundle", allow_exported=False)
    monkeypatch.delenv(ALLOW)
    assert load_bundle(tmp_path / "bundle", allow_exported=True).model.classes == CLASSES


def test_what_is_no_program_is_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setenv(ALLOW, "true")
    (tmp_path / "odd.pt2").write_bytes(b"no program")
    with pytest.raises(BundleError, match="no program that torch can load"):
        adopt_source(str(tmp_path / "odd.pt2"), weights=None, classes=CLASSES, geometry=GEOMETRY)


def test_a_network_in_hand_becomes_a_program_that_a_bundle_can_hold(tmp_path, image, monkeypatch):
    network = own_network()
    geometry = Geometry(resize=SIZE, crop_height=SIZE, crop_width=SIZE, mean=MEAN, std=STD,
                        interpolation="bilinear")  # fmt: skip
    with pytest.raises(BundleError, match="export=True"):
        save_bundle(adopt(network, classes=CLASSES, geometry=geometry), tmp_path / "none", name="mine")
    model = adopt(network, classes=CLASSES, geometry=geometry, name="my net", export=True)
    assert model.backbone.name == "exported:my-net"
    save_bundle(model, tmp_path / "bundle", name="mine")
    monkeypatch.setenv(ALLOW, "true")
    x = geometry.prepare(image)[0][None]
    with torch.no_grad():
        torch.testing.assert_close(
            load_bundle(tmp_path / "bundle").model(x), network(x), atol=1e-5, rtol=1e-5
        )


def test_a_function_of_ones_own_code_with_weights(tmp_path, image, monkeypatch):
    code = "from torchvision.models import resnet18\n\n\ndef build():\n    return resnet18(num_classes=3)\n"
    (tmp_path / "own_code_of_a_test.py").write_text(code + "\n\nnumber = dict\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    network = own_network()
    save_file(network.state_dict(), tmp_path / "weights.safetensors")
    adopted = adopt_source(
        "python:own_code_of_a_test:build", weights=tmp_path / "weights.safetensors", classes=CLASSES,
        geometry=GEOMETRY,
    )  # fmt: skip
    x = adopted.model.geometry.prepare(image)[0][None]
    with torch.no_grad():
        torch.testing.assert_close(adopted.model(x), network(x), atol=1e-5, rtol=1e-5)
    for source, reason in (
        ("python:own_code_of_a_test:none", "no function none"),
        ("python:no_such_module_here:build", "no_such_module_here"),
        ("python:own_code_of_a_test:number", "gives dict, not"),
    ):
        with pytest.raises(ConfigError, match=reason):
            adopt_source(source, weights=None, classes=CLASSES, geometry=GEOMETRY)
    sys.modules.pop("own_code_of_a_test")


def test_normalisation_that_nothing_says_must_be_named(program, monkeypatch):
    monkeypatch.setenv(ALLOW, "true")
    with pytest.raises(ConfigError, match="name --mean and --std"):
        adopt_source(str(program), weights=None, classes=CLASSES)


@pytest.mark.parametrize("name", ["model.pth", "model.ckpt", "model.pkl"])
def test_a_pickled_module_is_refused_with_what_to_do(tmp_path, name):
    torch.save(own_network(), tmp_path / name)
    with pytest.raises(ConfigError, match=r"with --weights; or save the network with torch\.export"):
        adopt_source(str(tmp_path / name), weights=None, classes=CLASSES)
