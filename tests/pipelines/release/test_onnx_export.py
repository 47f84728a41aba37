"""An ONNX file gives the logits, scores and maps that the model gives, in a runtime that knows no torch."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from models.attribution.targets import make_target
from models.bundle import load_bundle, save_bundle
from models.errors import UnknownChoice
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image
from models.images.geometry import Geometry
from models.networks.transfer_model import TransferModel
from pipelines.errors import RegistryError
from pipelines.release import onnx_export
from pipelines.release.onnx_export import export_onnx, map_difference

onnxruntime = pytest.importorskip("onnxruntime", reason="needs ONNX: pip install 'camera-lucida[onnx]'")


def session_of(path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def hold_against_the_explainer(bundle, path, images, *, method="grad_cam", block=None):
    """Compare each output with what the explainer says of the same pictures."""
    explainer = Explainer(bundle)
    prepared = [explainer.prepare(image) for image in images]
    x = torch.stack([item.x for item in prepared]).numpy()
    logits, scores, classes, maps = session_of(path).run(None, {"image": x})
    for n, item in enumerate(prepared):
        for k, index in enumerate(classes[n]):
            target = make_target(bundle.model.classes, int(index))
            options = ExplainOptions(method=method, block=block)
            (explanation,) = explainer.explain_batch([item], options, targets=[[target]])
            values = explanation.attributions[0].values
            assert map_difference(maps[n, k], values) <= 1e-4
            assert scores[n, index] == pytest.approx(explanation.score(explanation.attributions[0]), abs=1e-4)
        assert list(np.argsort(-logits[n])[:1]) == [explanation.predictions[0].index]
    return classes


@pytest.fixture(scope="module")
def pictures(butterflies):
    return [read_image(path) for path in sorted(butterflies.glob("val/*/*"))[::7][:3]]


@pytest.mark.soak
def test_the_highest_classes_of_any_number_of_pictures(bundle_folder, pictures, tmp_path):
    bundle = load_bundle(bundle_folder)
    done = export_onnx(bundle, tmp_path / "model.onnx", top_k=2)
    assert done.batch == "any"
    assert done.maps == (7, 7)
    assert done.path.stat().st_size == done.bytes
    for count in (1, 3):
        classes = hold_against_the_explainer(bundle, done.path, pictures[:count])
        assert classes.shape == (count, 2)
    facts = session_of(done.path).get_modelmeta().custom_metadata_map
    assert json.loads(facts["classes"]) == bundle.model.classes
    assert Geometry.from_dict(json.loads(facts["geometry"])) == bundle.model.geometry
    assert facts["bundle_digest"] == bundle.provenance.digest


@pytest.mark.soak
def test_classes_by_name_by_another_method_at_another_block(bundle_folder, pictures, tmp_path):
    bundle = load_bundle(bundle_folder)
    done = export_onnx(
        bundle, tmp_path / "m.onnx", targets=("flamingo", "ant"), method="layer_cam", block="stage5.2"
    )
    assert done.maps == (14, 14)
    classes = hold_against_the_explainer(
        bundle, done.path, pictures[:2], method="layer_cam", block="stage5.2"
    )
    assert [bundle.model.classes[index] for index in classes[0]] == ["flamingo", "ant"]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "batch"),
    [("squeezenet1_1", "any"), ("convnext_tiny", "any"), ("vit_b_16", "1"), ("mobilenet_v3_small", "any")],
)
def test_networks_of_other_kinds(name, batch, pictures, tmp_path):
    torch.manual_seed(0)
    model = TransferModel.create(name, ["a", "b", "c"], pretraining="none")
    save_bundle(model, tmp_path / "bundle", name="m")
    bundle = load_bundle(tmp_path / "bundle")
    done = export_onnx(bundle, tmp_path / "m.onnx")
    assert done.batch == batch
    hold_against_the_explainer(bundle, done.path, pictures[:1])


@pytest.mark.soak
def test_a_file_that_disagrees_with_torch_is_not_written(bundle_folder, tmp_path, monkeypatch):
    wrong = {"grad_cam": lambda gradient, grid: (gradient * grid).sum(1) * 1.01}
    monkeypatch.setattr(onnx_export, "_MAP_FORMULAS", wrong)
    with pytest.raises(RegistryError, match=r"its maps by .*No file was written"):
        export_onnx(load_bundle(bundle_folder), tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"method": "rise"}, "grad_cam, hires_cam, layer_cam"),
        ({"targets": ("wasp",)}, "ant, bee, flamingo"),
        ({"top_k": 4}, "1 to 3"),
        ({"block": "layer9"}, "stage7.0"),
    ],
)
def test_unknown_names_are_refused_before_any_work(bundle_folder, tmp_path, options, names):
    with pytest.raises(UnknownChoice, match=names):
        export_onnx(load_bundle(bundle_folder), tmp_path / "m.onnx", **options)
