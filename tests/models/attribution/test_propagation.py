"""Propagated CAM: the formula, what its cells add up to, and that it lies on objects better than Grad-CAM."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from models.attribution.forward import run_forward
from models.attribution.registry import METHODS, attribute_each
from models.attribution.targets import make_target
from models.errors import UnknownChoice
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image
from models.metrics.audit import run_audit
from models.metrics.localization import localize
from pipelines.data.dataset import scan_folder
from pipelines.evaluation.explanations import object_region

FINE = "stage5.2"


@pytest.fixture(scope="module")
def bee(photos, imagenet):
    path = sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0]
    return imagenet.geometry.prepare(read_image(path))[0]


def by_hand(model, x, index: int) -> np.ndarray:
    """The formula of the module's text, cell by cell, by gradients of the uncut network's own forward."""
    kept = {}
    value = x[None]
    for name in model.block_names:
        value = model.run_blocks(value, model.index_of(name), model.index_of(name) + 1)
        if name == FINE:
            value = value.detach().requires_grad_()
        if name in (FINE, model.cam_block):
            kept[name] = value
    score = model.head(value)[0, index]
    fine_gradient, gradient = torch.autograd.grad(score, [kept[FINE], kept[model.cam_block]])
    cam = (gradient[0].mean((1, 2))[:, None, None] * kept[model.cam_block][0]).sum(0).detach()
    features = kept[FINE][0].detach()
    hires = (fine_gradient[0] * features).sum(0).clamp(min=0)
    rows, cols = hires.shape
    coarse = F.interpolate(cam.clamp(min=0)[None, None], (rows, cols), mode="bilinear")[0, 0]
    coarse = coarse / coarse.max()
    within = coarse * hires / (coarse * hires).max()
    cells = features.flatten(1).T.numpy() - features.flatten(1).mean(1).numpy()
    laid = np.zeros(rows * cols)
    for view in (coarse.flatten().numpy(), within.flatten().numpy()):
        prototype = sum(weight * cell for weight, cell in zip(view, cells, strict=True))
        for n, cell in enumerate(cells):
            laid[n] += view[n] + cell @ prototype / np.linalg.norm(cell) / np.linalg.norm(prototype)
    laid = np.maximum(laid, 0).reshape(rows, cols)
    return laid / laid.sum() * float(cam.clamp(min=0).sum())


def test_a_map_is_the_formula_and_adds_up_to_grad_cams_positive_evidence(imagenet, bee):
    index = imagenet.classes.index("bee")
    forward = run_forward(imagenet, bee[None], block=FINE)
    (found,) = attribute_each(forward, [index], method="propagated_cam")
    np.testing.assert_allclose(found.values, by_hand(imagenet, bee, index), rtol=1e-3, atol=1e-5)
    (coarse,) = attribute_each(run_forward(imagenet, bee[None]), [index])
    assert found.values.sum() == pytest.approx(np.maximum(coarse.values, 0).sum(), rel=1e-4)


def test_both_gradients_are_those_of_passes_at_either_block(imagenet, bee):
    targets = [make_target(imagenet.classes, imagenet.classes.index("bee"))]
    low, top = run_forward(imagenet, bee[None], block=FINE), run_forward(imagenet, bee[None])
    value, upper, own = low.gradients_at_cam(targets)
    assert torch.equal(value, top.map.detach())
    torch.testing.assert_close(upper, top.gradient(targets))
    torch.testing.assert_close(own, low.gradient(targets))
    assert torch.equal(low.logits, top.logits)
    for ours, theirs in zip(top.gradients_at_cam(targets), (value, upper, upper), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_contrast_shows_both_sides_and_no_evidence_gives_an_empty_map(imagenet, gloomy, bee):
    bee_index, ant_index = (imagenet.classes.index(name) for name in ("bee", "ant"))
    forward = run_forward(imagenet, bee[None], block=FINE)
    one, other = (
        attribute_each(forward, [make_target(imagenet.classes, *pair)], method="propagated_cam")[0]
        for pair in ((bee_index, ant_index), (ant_index, bee_index))
    )
    assert one.values.min() < 0 < one.values.max()
    np.testing.assert_allclose(one.values, -other.values, atol=1e-5)
    (empty,) = attribute_each(run_forward(gloomy, bee[None], block=FINE), [0], method="propagated_cam")
    assert empty.status == "no_positive_evidence"


def test_it_reads_the_fine_block_where_none_is_asked_for(imagenet):
    explainer = Explainer(imagenet)
    assert explainer.check(ExplainOptions(method="propagated_cam")).block == FINE
    assert explainer.check(ExplainOptions(method="propagated_cam", block="top")).block == "top"
    assert explainer.check(ExplainOptions(method="hires_cam")).block == imagenet.cam_block
    with pytest.raises(UnknownChoice):
        explainer.default_block("no_cam")


def test_other_methods_are_asked_at_the_block_that_they_are_made_for(imagenet, photos):
    path = sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0]
    image, explainer = read_image(path), Explainer(imagenet)
    explanation = explainer.explain(image, ExplainOptions(method="propagated_cam"))
    costly = {name: "costs too much here" for name, row in METHODS.items() if row.grid == "input"}
    costly |= explainer.disabled
    audit = run_audit(
        image, explanation.forward, explanation.attributions[0], disabled=costly, checks=["agreement"]
    )
    blocks = {item.method: item.block for item in audit.maps}
    assert blocks.pop("propagated_cam") == FINE
    assert set(blocks.values()) == {imagenet.cam_block}


def test_it_lies_on_photographed_objects_better_than_grad_cam_and_points_no_worse(imagenet, photos):
    data, explainer = scan_folder(photos / "caltech_animals"), Explainer(imagenet)
    rows = []
    for sample in sorted(data.val, key=lambda sample: sample.sha256)[:24]:
        image = read_image(sample.path)
        mask = object_region(data, sample, (image.width, image.height))
        pair = []
        for method in ("grad_cam", "propagated_cam"):
            explanation = explainer.explain(image, ExplainOptions(method=method))
            pair.append(localize(explanation.attributions[0].values, explanation.frame, mask))
        rows.append([(located.auroc, located.pointing) for located in pair if located is not None])
    figures = np.array([row for row in rows if len(row) == 2])
    gains = figures[:, 1, 0] - figures[:, 0, 0]
    assert gains.mean() - 2 * gains.std() / len(gains) ** 0.5 > 0.02
    assert figures[:, 1, 1].mean() >= figures[:, 0, 1].mean()
