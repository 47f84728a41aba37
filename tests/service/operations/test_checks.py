"""The checks of an explanation, asked of the predictor itself; over HTTP in tests/test_whole_path.py."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, fields

import numpy as np
import PIL.Image
import pytest
from pydantic import ValidationError

from models.attribution.registry import METHODS
from models.bundle import (
    MANIFEST_FILE,
    _manifest_digest,
    copy_bundle,
    load_bundle,
    save_bundle,
)
from models.errors import BundleError, ConfigError, ExplanationError, UnknownChoice
from models.method_checks import MethodCheck, RandomizationCheck
from service.inference.model_card import describe_model
from service.inference.predictor import Predictor
from service.operations.filters import synthesize
from service.settings import Settings
from tests.support.asking import ask
from tests.support.methods import FOR_MAPS

SWIFT = Settings(engine="openvino", torch_threads=2)
"""Thousands of forwards are asked for here; the other predictor answers in tests/test_whole_path.py."""


@pytest.fixture(scope="module")
def predictor(bundle_folder) -> Iterator[Predictor]:
    with closing(Predictor(bundle_folder, SWIFT)) as made:
        yield made


@pytest.fixture(scope="module")
def bee(photos) -> bytes:
    return sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0].read_bytes()


def plain(answer) -> dict:
    return json.loads(answer.model_dump_json())


@pytest.mark.parametrize("method", FOR_MAPS)
def test_every_method_is_answered_with_its_unit_settings_and_scale(predictor, bee, method):
    (found,) = plain(ask(predictor, "explain", bee, method=method))["evidence"]
    assert found["method"] == method
    assert found["unit"] == METHODS[method].unit
    block = predictor.explainer.default_block(method) if METHODS[method].reads_block else "input"
    assert found["block"] == block
    assert {item.name for item in fields(METHODS[method].parameters)} <= set(found["settings"])
    rows = {"top": 7, "stage5.2": 14}[block] if METHODS[method].grid == "block" else 28
    assert found["grid"]["rows"] == rows
    assert 0 <= found["border"]["mass"] <= 1


def test_a_contrast_says_what_it_is_held_against(predictor, bee):
    (found,) = plain(ask(predictor, "explain", bee, against="ant"))["evidence"]
    both = plain(ask(predictor, "explain", bee, top_k=3))["evidence"]
    assert (found["label"], found["against"]) == ("bee", "ant")
    maps = {item["label"]: np.array(item["grid"]["values"]) for item in both}
    np.testing.assert_allclose(found["grid"]["values"], maps["bee"] - maps["ant"], atol=1e-5)


def test_a_faint_map_looks_faint_beside_the_predicted_classs(predictor, bee):
    """The class that lost is drawn to the scale of the one that won, and the answer says so."""
    top = plain(ask(predictor, "explain", bee, overlay=True))["evidence"][0]
    other = plain(ask(predictor, "explain", bee, target="flamingo", overlay=True))["evidence"][0]
    assert other["full_scale"] >= top["full_scale"] == pytest.approx(top["grid"]["max"])
    assert other["grid"]["max"] < other["full_scale"]
    shown = [
        np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(item["overlay"].split(",")[1])))).astype(int)
        for item in (top, other)
    ]
    warm = [(picture[..., 0] - picture[..., 2]).max() for picture in shown]
    assert warm[0] > warm[1], "full colour is kept for the stronger evidence"


def test_smoothing_and_faithfulness_are_options_of_any_explanation(predictor, bee):
    (found,) = plain(ask(predictor, "explain", bee, flip=True, noise=0.05, faithfulness=True))["evidence"]
    assert found["settings"]["averaged"] == 16
    judged = found["faithfulness"]
    assert 0 <= judged["percentile"] <= 100
    assert len(judged["deletion"]["scores"]) == len(judged["insertion"]["scores"]) == 11
    assert judged["control_maps"] == 19
    assert judged["verdict"].startswith("The model reacts")
    with pytest.raises(ConfigError, match="noise is 7"):
        ask(predictor, "explain", bee, noise=7)
    with pytest.raises(ValidationError, match="noise"):
        ask(predictor, "explain", bee, noise=float("nan"))


def test_what_nobody_would_wait_for_is_refused_before_any_work(predictor, bee):
    for fields_of_form in (
        {"method": "rise", "flip": True, "noise": 0.1},
        {"method": "integrated_gradients", "top_k": 3, "flip": True, "noise": 0.1},
        {"top_k": 10, "faithfulness": True},
    ):
        with pytest.raises(ExplanationError, match=r"would take about [\d,]+ forwards; the limit is 4,000"):
            ask(predictor, "explain", b"not even looked at", **fields_of_form)
    costs = {
        (name, targets): METHODS[name].count_forwards(METHODS[name].parameters(), targets, 224, 224)
        for name, targets in (("rise", 5), ("rise", 1), ("occlusion", 2), ("grad_cam", 3))
    }
    assert list(costs.values()) == [400, 400, 9 * 9 + 1, 3]


def test_trust_answers_every_check(predictor, bee):
    answer = plain(ask(predictor, "trust", bee, overlay=True))
    assert answer["evidence"][0]["faithfulness"]["verdict"]
    assert set(answer["agreement"]["methods"]) == set(FOR_MAPS)
    assert len(answer["agreement"]["correlations"]) == len(FOR_MAPS)
    assert len(answer["shifts"]["moves"]) == 12
    blocks = [item["evidence"]["block"] for item in answer["sweep"]]
    assert blocks == ["stage1.0", "stage2.1", "stage3.1", "stage5.2", "top"]
    some = plain(ask(predictor, "trust", bee, checks="shifts"))
    assert (some["agreement"], some["sweep"], some["evidence"][0]["faithfulness"]) == (None, None, None)
    with pytest.raises(UnknownChoice, match="faithfulness, agreement, shifts, sweep"):
        ask(predictor, "trust", bee, checks="truth")
    assert PIL.Image.open(io.BytesIO(ask(predictor, "trust", bee, picture=True).data)).format == "PNG"


def test_the_trace_and_its_sheet(predictor, bee):
    answer = plain(ask(predictor, "trace", bee, target="ant"))
    assert answer["evidence"]["label"] == "ant"
    assert answer["channels"] == 1280
    for channel in answer["speaking_for"]:
        assert np.shape(channel["activation"]) == np.shape(channel["gradient"]) == (7, 7)
        assert channel["weight"] == pytest.approx(np.mean(channel["gradient"]), abs=1e-8)
    assert answer["evidence"]["overlay"].startswith("data:image/jpeg")
    assert PIL.Image.open(io.BytesIO(ask(predictor, "trace", bee, picture=True).data)).width > 600


def test_what_if_covers_a_box_or_the_hottest_part(predictor, bee):
    width, height = PIL.Image.open(io.BytesIO(bee)).size
    hot = plain(ask(predictor, "whatif", bee, overlay=True, share=0.2, cover="mean"))
    assert hot["changes"][0]["label"] == "bee"
    assert hot["changes"][0]["change"] < 0
    assert hot["share"] == pytest.approx(0.2, abs=0.01)
    assert hot["covered"].startswith("data:image/jpeg")
    corner = f"{width / 2 - 20},{height / 2 - 20},{width / 2 + 20},{height / 2 + 20}"
    boxed = plain(ask(predictor, "whatif", bee, box=corner))
    assert sum(item["change"] for item in boxed["changes"]) == pytest.approx(0, abs=1e-6)
    for wrong in ("1,2,3", "a,b,c,d", "", "nan,0,1,1"):
        if wrong:
            with pytest.raises((UnknownChoice, ExplanationError)):
                ask(predictor, "whatif", bee, box=wrong)
    with pytest.raises(ValidationError, match="share"):
        ask(predictor, "whatif", bee, share=float("nan"))


def test_the_split_takes_the_highest_block_that_has_parts(predictor, bee):
    answer = plain(ask(predictor, "split", bee))
    assert (answer["block"], answer["kind"]) == ("stage6.3", "residual")
    assert [part["name"] for part in answer["parts"]] == ["skip", "branch"]
    with pytest.raises(ExplanationError, match="neither branches nor a skip"):
        ask(predictor, "split", bee, block="top")
    assert PIL.Image.open(io.BytesIO(ask(predictor, "split", bee, picture=True).data)).format == "PNG"


def test_templates_and_anatomy_are_there_to_be_served(predictor):
    (found,) = synthesize(predictor, "stage2.1", [3], 4, most=8, most_steps=256).templates
    assert found.picture.startswith("data:image/jpeg")
    assert found.response > found.start
    with pytest.raises(UnknownChoice, match="0 to 23"):
        synthesize(predictor, "stage2.1", [24], 4, most=8, most_steps=256)
    with pytest.raises(UnknownChoice, match="1 to 8"):
        synthesize(predictor, "stage2.1", list(range(9)), 4, most=8, most_steps=256)
    assert json.loads(json.dumps(asdict(predictor.summary)))["backbone"] == "efficientnet_lite0"


@pytest.fixture(scope="module")
def checked_folder(bundle_folder, tmp_path_factory):
    """The same model with a sanity check in which one method fell through."""
    good = MethodCheck({"head": 0.2, "stem": 0.1}, False, "Its maps change (for the test).")
    bad = MethodCheck({"head": 0.9, "stem": 0.9}, True, "Its maps hardly change (for the test).")
    folder = tmp_path_factory.mktemp("checked") / "bundle"
    save_bundle(
        load_bundle(bundle_folder).model, folder, name="checked",
        sanity=RandomizationCheck({"grad_cam": good, "layer_cam": bad}, 3, 0),
    )  # fmt: skip
    return folder


def test_a_barred_method_is_refused_with_the_reason_and_the_others_are_noted(checked_folder, bee):
    predictor = Predictor(checked_folder, SWIFT)
    with pytest.raises(
        ExplanationError, match=r"layer_cam is barred .* hardly change .* grad_cam, hires_cam"
    ):
        ask(predictor, "explain", bee, method="layer_cam")
    (found,) = plain(ask(predictor, "explain", bee))["evidence"]
    assert found["sanity"] == "Its maps change (for the test)."
    unknown = plain(ask(predictor, "explain", bee, method="rise"))
    assert unknown["evidence"][0]["sanity"] is None
    assert any("was not checked" in said for said in unknown["warnings"])
    said = describe_model(predictor)
    assert "layer_cam" not in said["methods"]
    assert said["barred_methods"] == {"layer_cam": "Its maps hardly change (for the test)."}
    trusted = plain(ask(predictor, "trust", bee, checks="agreement"))
    assert "layer_cam" in trusted["agreement"]["left_out"]


def test_a_bundle_whose_grad_cam_is_barred_is_served_by_the_next_method(bundle_folder, tmp_path, bee):
    bad = MethodCheck({"stem": 0.9}, True, "Its maps hardly change (for the test).")
    save_bundle(
        load_bundle(bundle_folder).model,
        tmp_path / "b",
        name="b",
        sanity=RandomizationCheck({"grad_cam": bad}, 3, 0),
    )
    predictor = Predictor(tmp_path / "b", SWIFT)
    assert describe_model(predictor)["default_method"] == "hires_cam"
    assert ask(predictor, "explain", bee).evidence[0].method == "hires_cam"
    assert ask(predictor, "whatif", bee).changes
    stages = ask(predictor, "trust", bee, checks="sweep").sweep
    assert {stage.evidence.method for stage in stages} == {"hires_cam"}
    for operation in ("trace", "split"):
        for picture in (False, True):
            with pytest.raises(ExplanationError, match="grad_cam is barred"):
                ask(predictor, operation, bee, picture=picture)


def test_a_damaged_sanity_check_is_refused(checked_folder, tmp_path):
    manifest = json.loads((checked_folder / MANIFEST_FILE).read_text())
    manifest["sanity"] = {"methods": {"grad_cam": {}}}
    manifest["digest"] = _manifest_digest(manifest)
    folder = tmp_path / "damaged"
    copy_bundle(checked_folder, folder)
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="sanity check"):
        load_bundle(folder)


def test_greyscale_pictures_and_a_geometry_that_is_not_square(bundle_folder, tmp_path, encode):
    """Down to the overlay: the map has the crop's shape, the drawn picture that of the upload."""
    from dataclasses import replace

    model = load_bundle(bundle_folder).model
    model.geometry = replace(model.geometry, resize=128, crop_height=96, crop_width=128)
    save_bundle(model, tmp_path / "wide", name="wide")
    predictor = Predictor(tmp_path / "wide", Settings())
    grey = PIL.Image.fromarray(np.random.default_rng(0).integers(0, 255, (300, 420), np.uint8))
    assert grey.mode == "L"
    answer = plain(ask(predictor, "explain", encode(grey), overlay=True))
    (found,) = answer["evidence"]
    assert (found["grid"]["rows"], found["grid"]["cols"]) == (3, 4)
    x0, y0, x1, y1 = found["seen_box"]
    assert (x1 - x0) / (y1 - y0) == pytest.approx(256 / 192, rel=0.01)
    drawn = PIL.Image.open(io.BytesIO(base64.b64decode(found["overlay"].split(",")[1])))
    assert drawn.size == (420, 300)
    for method in FOR_MAPS:
        (each,) = plain(ask(predictor, "explain", encode(grey), method=method))["evidence"]
        assert each["grid"]["cols"] / each["grid"]["rows"] == pytest.approx(256 / 192)
