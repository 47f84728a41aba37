"""A model that was trained elsewhere, from its file to an answer of the service."""

from __future__ import annotations

import json
import re
import shlex
import shutil

import mlflow
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from models.bundle import load_bundle
from models.errors import ConfigError, UnknownChoice
from models.explainer import Explainer
from models.images.decode import read_image
from models.networks.adoption import adopt_source
from models.networks.exported import export_network
from models.networks.library import library_geometry
from pipelines.data.dataset import scan_folder
from pipelines.errors import DataError
from pipelines.tracking.registry import fetch_bundle
from pipelines.training.adoption import compare_normalisations, match_classes
from tests.support.serving import PROJECT
from tests.support.small_timm import NAME, fitted_network, write_hub_folder

HALF = (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def data(butterflies):
    return scan_folder(butterflies)


@pytest.fixture(scope="module")
def trained(data) -> nn.Module:
    """A network that was trained elsewhere, with its classes in an order of its own."""
    return fitted_network(data, list(reversed(data.classes)))


@pytest.fixture(scope="module")
def folder(trained, data, tmp_path_factory):
    """The same as timm saves it for the Hugging Face hub."""
    return write_hub_folder(trained, list(reversed(data.classes)), tmp_path_factory.mktemp("hub"))


def accuracy_of(network, data) -> float:
    """Counted by plain torch."""
    x = library_geometry(f"timm:{NAME}").prepare_files(sample.path for sample in data.val)
    with torch.no_grad():
        answers = network(x).argmax(1).tolist()
    labels = [len(data.classes) - 1 - sample.label for sample in data.val]
    return sum(map(int.__eq__, answers, labels)) / len(labels)


def test_a_folder_of_the_hub_is_judged_reviewed_registered_and_explained(
    folder, data, butterflies, trained, at_once, in_tmp
):
    done = at_once("adopt", str(folder), "--data", str(butterflies), "--name", "wings", "--sanity", "block")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Cut and uncut, its logits are equal" in done.stdout
    (run,) = mlflow.search_runs(experiment_names=["camera-lucida"], output_format="list")
    assert run.info.status == "FINISHED"
    assert run.data.metrics["val_accuracy"] == pytest.approx(accuracy_of(trained, data))
    assert accuracy_of(trained, data) > 0.6
    assert run.data.tags["lucida.adopted"] == str(folder)
    assert run.data.tags["dataset.digest"] == data.digest, "by which promotion knows what may be compared"
    artefacts = {item.path for item in mlflow.MlflowClient().list_artifacts(run.info.run_id)}
    assert {"adoption.json", "dataset.json", "review", "explanations"} <= artefacts
    assert at_once("promote", "wings").returncode == 0
    bundle = load_bundle(fetch_bundle("wings@champion", in_tmp / "fetched").folder)
    assert bundle.model.classes == list(reversed(data.classes))
    image = read_image(data.val[0].path)
    explanation = Explainer(bundle).explain(image)
    with torch.no_grad():
        x = bundle.model.geometry.prepare(image)[0].unsqueeze(0)
        probabilities = (trained(x) / bundle.model.scoring.temperature).softmax(1)[0]
    assert explanation.predictions[0].score == pytest.approx(float(probabilities.max()), abs=1e-5)
    assert explanation.attributions[0].values.shape == (5, 5)
    reviewed = at_once("review", run.info.run_id, "--data", str(butterflies))
    assert reviewed.returncode == 0, reviewed.stdout + reviewed.stderr


def test_without_data_it_is_registered_and_said_to_be_unjudged(folder, at_once, in_tmp):
    done = at_once("adopt", str(folder), "--name", "blind")
    assert done.returncode == 0, done.stdout + done.stderr
    version = mlflow.MlflowClient().get_model_version("blind", "1")
    assert "neither judged nor calibrated" in version.description


def test_a_wrong_normalisation_is_noticed_and_the_right_one_is_not(folder, data):
    right = adopt_source(str(folder), weights=None, classes=None).model
    ordered = match_classes(data, right.classes)
    assert compare_normalisations(right, ordered) == []
    wrong = adopt_source(
        str(folder), weights=None, classes=None, geometry={"mean": (0.0, 0.0, 0.0), "std": (0.1, 0.1, 0.1)}
    ).model
    sentences = compare_normalisations(wrong, ordered)
    assert any("mean 0.485" in sentence or "mean 0.5" in sentence for sentence in sentences)


def test_data_of_other_classes_is_refused_by_their_names(data):
    with pytest.raises(DataError, match="differ in moth"):
        match_classes(data, [*data.classes[:-1], "moth", data.classes[-1]])
    turned = match_classes(data, list(reversed(data.classes)))
    for before, after in zip(data.val, turned.val, strict=True):
        assert data.classes[before.label] == turned.classes[after.label]
    assert turned.digest == data.digest


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["timm:test_resnet"], "could not be"),
        (["timm:test_resnett", "--classes", "a,b"], "test_resnet"),
        (["no/such/folder"], "timm:convnext_atto"),
        (["timm:test_resnet", "--weights", "none.pth", "--classes", "a,b"], "There is no file"),
        (["HUB", "--classes", "a,b"], "classes, not for 2"),
        (["HUB", "--mean", "1,2"], "three numbers"),
        (["HUB", "--view", "round"], "Unknown view"),
        (["HUB", "--sanity", "some"], "all, block, none"),
        (["no/such/folder", "--data", "/"], "timm:convnext_atto"),
        (["timm:test_resnet", "--weights", "none.pth", "--data", "/"], "There is no file"),
        (["HUB", "--name", "a name", "--data", "/"], "must be letters"),
    ],
)
def test_what_cannot_be_adopted_is_a_sentence_and_nothing_is_registered(
    words, reason, folder, at_once, in_tmp, monkeypatch
):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    done = at_once("adopt", *(str(folder) if word == "HUB" else word for word in words))
    assert done.returncode in {1, 2}
    assert reason in " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert not mlflow.search_runs(experiment_names=["camera-lucida"], output_format="list")
    assert not mlflow.MlflowClient().search_registered_models()


def test_a_description_of_transformers_without_preprocessing_is_refused(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ViTForImageClassification"]}))
    with pytest.raises(ConfigError, match=r"has no preprocessor_config\.json"):
        adopt_source(str(tmp_path), weights=None, classes=None)


def test_models_that_others_logged_to_mlflow(folder, trained, data, at_once, in_tmp, monkeypatch):
    """A folder of the hub by its version's address, a program by its run's; pickles are never loaded."""
    client = mlflow.MlflowClient()
    torch.save(trained, "model.pth")
    program = export_network(trained, torch.zeros(1, 3, 160, 160))
    (in_tmp / "mine.pt2").write_bytes(program)
    mlflow.set_experiment("theirs")
    with mlflow.start_run() as run:
        mlflow.log_artifacts(str(folder), "network/components")
        mlflow.log_artifact("model.pth", "pickled/data")
        mlflow.log_artifact("mine.pt2", "exported")
    address = f"runs:/{run.info.run_id}"
    client.create_registered_model("theirs")
    client.create_model_version("theirs", f"{run.info.artifact_uri}/network", run.info.run_id)
    done = at_once("adopt", "mlflow:models:/theirs/1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert client.get_model_version("theirs", "2")
    done = at_once("adopt", f"mlflow:{address}/pickled", "--name", "two", "--classes", "a,b")
    assert done.returncode == 1
    assert "only pickled modules (model.pth), which are never loaded" in " ".join(done.stderr.split())
    words = ["adopt", f"mlflow:{address}/exported", "--name", "three", "--mean", "0.5,0.5,0.5", "--std",
             "0.5,0.5,0.5", "--classes", ",".join(reversed(data.classes))]  # fmt: skip
    done = at_once(*words)
    assert done.returncode == 1
    assert "LUCIDA_ALLOW_EXPORTED=true" in " ".join(done.stderr.split())
    monkeypatch.setenv("LUCIDA_ALLOW_EXPORTED", "true")
    done = at_once(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    bundle = load_bundle(fetch_bundle("three/1", in_tmp / "three").folder)
    image = read_image(data.val[0].path)
    with torch.no_grad():
        x = bundle.model.geometry.prepare(image)[0].unsqueeze(0)
        torch.testing.assert_close(bundle.model(x), trained(x), atol=1e-4, rtol=1e-4)
    assert at_once("adopt", "mlflow:models:/three/1", "--name", "four").returncode == 1
    assert at_once("adopt", "mlflow:models:/nobody/1", "--name", "five").returncode == 1
    assert {model.name for model in client.search_registered_models()} == {"three", "theirs"}


def test_another_input_size(folder, data):
    size = {"crop_height": 96, "crop_width": 128, "resize": 128}
    model = adopt_source(str(folder), weights=None, classes=None, geometry=size).model
    assert model.geometry.crop_width == 128
    image = read_image(data.val[0].path)
    assert Explainer(model).explain(image).attributions[0].values.shape == (6, 8)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pretrained_cfg", {"input_size": [3, 224], "mean": [0] * 3, "std": [1] * 3}),
        ("pretrained_cfg", {"input_size": [3, 64, 64], "mean": [0] * 3, "std": [1] * 3, "crop_pct": 0}),
        ("pretrained_cfg", None),
        ("label_names", 5),
        ("label_names", [1, 2]),
        ("architecture", "../../x"),
    ],
)
def test_a_damaged_description_is_a_sentence(key, value, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "hub")
    config = json.loads((folder / "config.json").read_text()) | {key: value}
    (tmp_path / "hub" / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConfigError, UnknownChoice)):
        adopt_source(str(tmp_path / "hub"), weights=None, classes=None)


@pytest.mark.soak
def test_the_command_of_the_readme(butterflies, at_once, in_tmp):
    text = (PROJECT / "README.md").read_text()
    (line,) = re.findall(r"^\$ (lucida adopt .*)$", text, re.MULTILINE)
    save_file(timm.create_model("convnext_atto", num_classes=3).state_dict(), "mine.safetensors")
    for split in ("train", "val"):
        folders = sorted((butterflies / split).iterdir())
        for folder, name in zip(folders, ("cat", "dog", "fox"), strict=False):
            shutil.copytree(folder, in_tmp / "my_pictures" / split / name)
    done = at_once(*shlex.split(line)[1:], "--sanity", "block")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "registered mine version 1" in done.stdout
    family = at_once("networks", "--family", "mnasnet", "--most", "1")
    assert "torchvision:mnasnet0_5" in family.stdout
