"""How logits become scores, for each kind of task."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn import functional as F

from models.attribution.forward import run_forward
from models.attribution.registry import attribute
from models.bundle import _manifest_digest, load_bundle, save_bundle
from models.errors import BundleError, ConfigError, UnknownChoice
from models.networks.predictions import rank_classes
from models.networks.scoring import Scoring, expand_binary
from models.networks.transfer_model import TransferModel


def test_one_logit_as_two_is_the_sigmoid_and_its_loss():
    z = torch.linspace(-8, 8, 33).unsqueeze(1)
    two = expand_binary(z)
    torch.testing.assert_close(torch.softmax(two, 1)[:, 1], torch.sigmoid(z[:, 0]))
    truth = torch.arange(33) % 2
    torch.testing.assert_close(
        F.cross_entropy(two, truth), F.binary_cross_entropy_with_logits(z[:, 0], truth.float())
    )


def test_several_labels_each_have_a_score_of_their_own():
    logits, names = torch.tensor([2.0, -1.0, 0.0]), ["a", "b", "c"]
    ranking = rank_classes(logits, names, Scoring("multilabel"))
    assert [(item.label, item.accepted) for item in ranking] == [("a", True), ("c", True), ("b", False)]
    assert [item.score for item in ranking] == pytest.approx([0.8807970779778823, 0.5, 0.2689414213699951])
    assert [item.accepted for item in rank_classes(logits, names, Scoring())] == [True, False, False]


@pytest.mark.parametrize("task", ["multiclass", "multilabel"])
def test_a_temperature_changes_how_sure_but_not_which(task):
    logits, names = torch.tensor([2.0, -1.0, 0.5]), ["a", "b", "c"]
    plain, cooler = (rank_classes(logits, names, Scoring(task, t)) for t in (1.0, 3.0))
    assert [item.label for item in plain] == [item.label for item in cooler]
    assert [item.accepted for item in plain] == [item.accepted for item in cooler]
    expected = rank_classes(logits / 3, names, Scoring(task))
    assert [item.score for item in cooler] == pytest.approx([item.score for item in expected])
    assert cooler[0].score < plain[0].score


def test_what_cannot_be_scored():
    with pytest.raises(UnknownChoice, match="multiclass, binary, multilabel"):
        Scoring("regression")  # type: ignore[arg-type]
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="from 0\\.01 to 100"):
            Scoring("multiclass", temperature)
    with pytest.raises(ConfigError, match="two classes"):
        TransferModel.create("resnet18", ["a", "b", "c"], pretraining="none", task="binary")


def test_a_binary_models_two_maps_mirror_each_other(imagenet):
    model = TransferModel.create("efficientnet_lite0", ["not x", "x"], task="binary")
    torch.manual_seed(0)
    x = torch.randn(1, 3, 224, 224)
    forward = run_forward(model, x)
    assert forward.logits.shape == (1, 2)
    negative, positive = attribute(forward, [[0, 1]])[0]
    assert abs(positive.values).max() > 0
    assert torch.equal(torch.from_numpy(negative.values), torch.from_numpy(-positive.values))


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_a_bundle_keeps_task_and_temperature(tmp_path, task):
    torch.manual_seed(0)
    model = TransferModel.create("resnet18", ["not x", "x"], pretraining="none", task=task)
    model.scoring = Scoring(task, 1.75)
    save_bundle(model, tmp_path / "b", name="b")
    loaded = load_bundle(tmp_path / "b")
    assert loaded.model.scoring == Scoring(task, 1.75)
    x = torch.randn(2, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), model(x))


def altered(folder, **change) -> None:
    """Change the manifest and give it the digest that belongs to the lie."""
    manifest = json.loads((folder / "bundle.json").read_text()) | change
    for key in [key for key, value in change.items() if value is None]:
        del manifest[key]
    manifest["digest"] = _manifest_digest(manifest)
    (folder / "bundle.json").write_text(json.dumps(manifest))


def test_bundles_from_before_tasks_are_multiclass_and_uncalibrated(tmp_path):
    model = TransferModel.create("resnet18", ["a", "b"], pretraining="none")
    save_bundle(model, tmp_path / "b", name="b")
    altered(tmp_path / "b", scoring=None)
    assert load_bundle(tmp_path / "b").model.scoring == Scoring("multiclass", 1.0)


@pytest.mark.parametrize(
    "scoring",
    [
        {"task": "regression", "temperature": 1.0},
        {"task": "multiclass", "temperature": 0.0},
        {"task": "multiclass", "temperature": "hot"},
        {"task": "multiclass", "other": 1},
        "multiclass",
        {"task": "binary", "temperature": 1.0},
    ],
)
def test_a_scoring_that_lies_is_refused(tmp_path, scoring):
    model = TransferModel.create("resnet18", ["a", "b", "c"], pretraining="none")
    save_bundle(model, tmp_path / "b", name="b")
    altered(tmp_path / "b", scoring=scoring)
    with pytest.raises(BundleError, match=r"scoring|two classes"):
        load_bundle(tmp_path / "b")
