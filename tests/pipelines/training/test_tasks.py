"""Questions other than one class of many, from the labels to the answers of the service."""

from __future__ import annotations

import csv
import shutil
from dataclasses import replace

import mlflow
import pytest

from models.bundle import load_bundle
from models.errors import ConfigError, ImageError
from models.explainer import Explainer
from pipelines.batch.job import plan_job
from pipelines.batch.local import run_local
from pipelines.config.schema import PhaseConfig, TrainConfig
from pipelines.data.dataset import scan_folder
from pipelines.errors import DataError
from pipelines.progress import Reporter
from pipelines.tracking.registry import fetch_bundle
from pipelines.training.train import train_model
from service.inference.model_card import describe_model
from service.inference.predictor import Predictor
from service.settings import Settings
from tests.support.asking import ask

CONFIG = TrainConfig(
    phases=(PhaseConfig("head", "head", 12, 6e-3), PhaseConfig("top", "top", 3, 1e-3, mixup=0.1)),
    views=2,
    batch_size=8,
    class_weights="balanced",
    sanity="block",
)
MARKED = {
    "argus": ("eyed", "banded"),
    "apicata": ("banded",),
    "caudata": ("tailed",),
    "cincta": ("banded", "tailed"),
}


def labelled(butterflies, folder, header, row):
    """The specimens without their class folders, labelled by a table."""
    folder.mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        for path in sorted(butterflies.glob("[tv]*/*/*.jpg")):
            split, species = path.parts[-3:-1]
            (folder / split).mkdir(exist_ok=True)
            shutil.copy(path, folder / split / path.name)
            table.writerow([f"{split}/{path.name}", *row(species)])
    return scan_folder(folder)


def served(name, folder) -> Predictor:
    return Predictor(fetch_bundle(name, folder).folder, Settings())


def test_any_number_of_labels(in_tmp, butterflies):
    def row(species):
        return [";".join(MARKED.get(species, ()))]

    found = labelled(butterflies, in_tmp / "marks", ["file", "labels"], row)
    assert found.task == "multilabel"
    assert () in {sample.labels for sample in found.train}, "some have no label at all"
    done = train_model(found, CONFIG, name="marks")
    val = done.evaluations["val"]
    assert val.metrics["accuracy"] > 0.7
    assert 0 < val.metrics["mean_average_precision"] <= 1
    predictor = served("marks", in_tmp / "b")
    both = next(item for item in val.samples if len(item.sample.labels) == 2 and item.is_correct)
    answer = ask(predictor, "explain", both.sample.path.read_bytes(), top_k=2)
    assert answer.task == "multilabel"
    assert {score.label for score in answer.predictions if score.accepted} == set(both.truth.split(" + "))
    assert sum(score.score for score in answer.predictions) > 1
    assert {score.label: score.score for score in answer.predictions} == pytest.approx(
        {item.label: item.score for item in both.ranking}, abs=1e-4
    )
    assert describe_model(predictor)["scoring"]["task"] == "multilabel"
    loaded = load_bundle(in_tmp / "b")
    explained = run_local(plan_job(found.root / "val", Explainer(loaded)), loaded, in_tmp / "out")
    assert explained.errors == 0
    assert (explained.out / "index.html").is_file()


def test_a_yes_or_no_question(in_tmp, butterflies):
    found = labelled(
        butterflies, in_tmp / "eyes", ["file", "eyed"], lambda species: [int(species == "argus")]
    )
    assert (found.task, found.classes) == ("binary", ["not eyed", "eyed"])
    done = train_model(found, CONFIG, name="eyes")
    val = done.evaluations["val"]
    assert val.metrics["auroc"] > 0.8
    assert {"precision", "recall", "specificity", "average_precision"} <= val.metrics.keys()
    predictor = served("eyes", in_tmp / "b")
    assert predictor.model.classifier[-1].out_features == 1, "one logit"
    sample = val.samples[0].sample
    answer = ask(predictor, "explain", sample.path.read_bytes(), top_k=2)
    assert answer.task == "binary"
    assert sum(score.score for score in answer.predictions) == pytest.approx(1)
    first, second = answer.evidence
    assert first.grid.values == [[-value for value in row] for row in second.grid.values]


def test_a_task_that_the_labels_do_not_allow_is_refused_before_any_work(in_tmp, butterflies):
    with pytest.raises(DataError, match="binary"):
        train_model(scan_folder(butterflies), replace(CONFIG, task="binary"), name="x")
    assert not (in_tmp / "runs").exists()


def test_a_run_that_fails_says_so_and_stays_resumable(in_tmp, butterflies):
    copy = shutil.copytree(butterflies, in_tmp / "copy")
    found = scan_folder(copy)
    found.val[0].path.write_bytes(b"no longer a picture")
    said = []
    with pytest.raises((ImageError, ConfigError)):
        train_model(found, CONFIG, name="x", reporter=Reporter(say=said.append))
    told = mlflow.search_runs(search_all_experiments=True, output_format="list")
    states = {run.info.run_name.partition(" seed")[0]: run.info.status for run in told}
    assert states[f"x efficientnet_lite0 {CONFIG.preset}"] == "FAILED"
    assert {run.info.status for run in told} <= {"FAILED", "SCHEDULED"}
    assert "lucida train --resume" in said[-1]
