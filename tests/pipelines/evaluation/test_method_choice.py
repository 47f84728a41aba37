"""The short benchmark of a run: the best method for each question, as its bundle keeps it."""

from __future__ import annotations

import pytest

from models.bundle import load_bundle
from models.explainer import Explainer
from pipelines.data.dataset import scan_folder
from pipelines.evaluation.method_choice import choose_methods


@pytest.fixture(scope="module")
def samples(photos):
    """One photograph of each of twelve animals."""
    by_class = {sample.labels[0]: sample for sample in scan_folder(photos / "caltech_animals").val}
    return [by_class[label] for label in sorted(by_class)][:12]


def test_the_method_is_named_that_finds_the_class_in_mosaics(imagenet, samples):
    region, loses, finest = choose_methods(Explainer(imagenet), samples, "block")
    assert str(region) in {f"grad_cam at {imagenet.cam_block}", f"hires_cam at {imagenet.cam_block}"}
    assert region.why.startswith("AUROC of its cell in grid 2x2: 0.")
    assert loses.question == "What would the score lose?"
    assert finest.method != "grad_cam", "its cells are no finer"
    assert choose_methods(Explainer(imagenet), samples, "none") == []
    assert choose_methods(Explainer(imagenet), [], "block") == []


def test_of_too_few_classes_it_is_said_that_no_mosaic_could_be_made(bundle_folder, samples):
    region, *_ = choose_methods(Explainer(load_bundle(bundle_folder)), samples[:6], "block")
    assert region.method is None
    assert "four classes" in region.why
