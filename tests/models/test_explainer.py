"""The explainer: one recipe for service, batch and Python, and results that show themselves."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import PIL.Image
import pytest
import torch

from models import (
    Deadline,
    Explainer,
    ExplainOptions,
    LucidaError,
    Target,
    TransferModel,
    deadline_scope,
    image_from_array,
    load_bundle,
    run_audit,
)
from models.attribution.forward import run_forward
from models.attribution.registry import METHODS, attribute_each
from models.bundle import save_bundle
from models.errors import ConfigError, DeadlineExceeded, ExplanationError, UnknownChoice
from models.method_checks import MethodCheck, RandomizationCheck


@pytest.fixture(scope="module")
def explainer(bundle_folder) -> Explainer:
    return Explainer(load_bundle(bundle_folder))


@pytest.fixture(scope="module")
def image():
    noise = np.random.default_rng(0).integers(0, 256, (300, 420, 3))
    return image_from_array(noise.astype(np.uint8))


def test_it_gives_what_its_parts_give(explainer, image):
    explanation = explainer.explain(image, ExplainOptions(target="bee", method="hires_cam", block="stage6.3"))
    x, frame = explainer.model.geometry.prepare(image)
    forward = run_forward(explainer.model, x[None], block="stage6.3", backend=explainer.backend)
    by_hand = attribute_each(forward, [Target(1, "bee")], method="hires_cam")[0]
    np.testing.assert_array_equal(explanation.attributions[0].values, by_hand.values)
    assert explanation.frame == frame
    scores = torch.softmax(forward.logits[0].double(), 0)
    assert {item.label: item.score for item in explanation.predictions} == pytest.approx(
        dict(zip(explainer.model.classes, scores.tolist(), strict=True))
    )
    assert any("cropped away" in text for text in explanation.warnings)
    assert explanation.provenance.model == "three"


def test_a_batch_gives_what_single_images_give(explainer, image):
    prepared = [
        explainer.prepare(image),
        explainer.prepare(image_from_array(np.asarray(image.pil)[:, ::-1].copy())),
    ]
    options = ExplainOptions(top_k=2, method="layer_cam")
    for one, alone in zip(explainer.explain_batch(prepared, options), prepared, strict=True):
        single = explainer.explain(alone, options)
        for together, apart in zip(one.attributions, single.attributions, strict=True):
            assert together.target == apart.target
            np.testing.assert_allclose(together.values, apart.values, atol=1e-5 * abs(apart.values).max())


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"target": "wasp"}, UnknownChoice, "ant, bee, flamingo"),
        ({"target": "bee", "against": "bee"}, LucidaError, "bee"),
        ({"block": "layer4"}, UnknownChoice, "stage7.0"),
        ({"method": "lime"}, UnknownChoice, "grad_cam, hires_cam"),
        ({"method": "rise", "parameters": {"masks": 0}}, ConfigError, "masks is 0; .* from 1 to"),
        ({"method": "rise", "parameters": {"mask": 9}}, UnknownChoice, "masks, cells, seed, cell"),
        ({"method": "grad_cam", "parameters": {"cell": 9}}, UnknownChoice, "this method has none"),
        ({"noise": -1.0}, ConfigError, "noise"),
    ],
)
def test_options_are_checked_once_and_name_the_choices(explainer, options, error, says):
    with pytest.raises(error, match=says):
        explainer.check(ExplainOptions(**options))


def test_checked_options_are_whole_and_stay_as_they_are(explainer):
    options = explainer.check(ExplainOptions(method="occlusion", parameters={"stride": "32"}, quick=True))
    assert (options.block, options.method) == (explainer.model.cam_block, "occlusion")
    assert options.parameters["stride"] == 32
    assert options.parameters["window"] == METHODS["occlusion"].parameters.QUICK["window"]
    assert explainer.check(options) == options


def test_a_disabled_method_is_refused_and_another_is_the_default(imagenet, tmp_path, image):
    check = RandomizationCheck(
        {"grad_cam": MethodCheck({"head": 0.99}, True, "It did not change.")}, pictures=4, seed=0
    )
    model = TransferModel.create("efficientnet_lite0", ["ant", "bee"])
    save_bundle(model, tmp_path / "b", name="b", run_id="0" * 32, metrics={}, sanity=check)
    explainer = Explainer(load_bundle(tmp_path / "b"))
    assert list(explainer.barred) == ["grad_cam"]
    assert explainer.explain(image).attributions[0].method == "hires_cam"
    with pytest.raises(ExplanationError, match=r"It did not change\. Choose one of: hires_cam"):
        explainer.explain(image, ExplainOptions(method="grad_cam"))


def test_a_method_that_cannot_tell_classes_apart_explains_the_predicted_class_alone(
    imagenet, tmp_path, image
):
    blind = MethodCheck({"head": 0.97}, False, "Its maps stay.", other_class=0.96)
    check = RandomizationCheck({"grad_cam": blind}, pictures=4, seed=0)
    model = TransferModel.create("efficientnet_lite0", ["ant", "bee"])
    save_bundle(model, tmp_path / "b", name="b", run_id="0" * 32, metrics={}, sanity=check)
    explainer = Explainer(load_bundle(tmp_path / "b"))
    assert explainer.class_blind == {"grad_cam": "Its maps stay."}
    assert explainer.default_method == "hires_cam"
    top, other = (item.label for item in explainer.explain(image).predictions)
    for target in (None, top):
        found = explainer.explain(image, ExplainOptions(method="grad_cam", target=target))
        assert found.attributions[0].label == top
    for asked in ({"target": other}, {"against": other}, {"target": top, "negative": True}):
        with pytest.raises(
            ExplanationError, match=r"predicted class only.*Its maps stay.*hires_cam, layer_cam"
        ):
            explainer.explain(image, ExplainOptions(method="grad_cam", **asked))


def test_a_deadline_leaves_the_map_out_only_where_that_is_allowed(explainer, image):
    prepared, options = explainer.prepare(image), ExplainOptions(method="rise", parameters={"masks": 2000})
    with deadline_scope(Deadline(0.5)), pytest.raises(DeadlineExceeded):
        explainer.explain(prepared, options)
    with deadline_scope(Deadline(0.5)):
        explanation = explainer.explain(prepared, options, partial=True)
    assert explanation.attributions == ()
    assert explanation.predictions
    assert "rise" in explanation.skipped[0]


def test_an_explanation_shows_itself_in_a_notebook(image):
    model = TransferModel.create("efficientnet_lite0", ["<b>ant</b>", "bee"])
    explanation = Explainer(model).explain(image, ExplainOptions(top_k=2))
    page = explanation._repr_html_()
    assert "<b>" not in page
    assert "&lt;b&gt;ant&lt;/b&gt;" in page
    pictures = [
        PIL.Image.open(io.BytesIO(base64.b64decode(data)))
        for data in re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    ]
    assert len(pictures) == 2
    assert all(max(picture.size) <= 400 for picture in pictures)
    for prediction in explanation.predictions:
        assert f"{prediction.score:.3f}" in page
    assert explanation.warnings
    assert "cropped away" in page


def test_the_overlay_is_of_the_images_size(explainer, image):
    explanation = explainer.explain(image)
    assert explanation.overlay().size == (420, 300)
    audit = run_audit(
        image, explanation.forward, explanation.attributions[0], disabled={}, checks=("agreement",)
    )
    assert audit.agreement is not None
