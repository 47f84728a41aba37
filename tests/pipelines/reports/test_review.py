"""Training's story, its review and a comparison, made once on the specimens and looked at in a real
browser.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import replace

import mlflow
import numpy as np
import pandas as pd
import PIL.Image
import pytest
import torch

from models.attribution.result import Attribution
from models.attribution.targets import Target
from models.bundle import load_bundle
from models.metrics.localization import Localization
from models.networks.registry import get_backbone
from models.networks.transfer_model import TransferModel
from models.progress import no_progress
from pipelines.config.loader import config_from_toml
from pipelines.config.schema import Augmentation, PhaseConfig, TrainConfig
from pipelines.data.dataset import scan_folder
from pipelines.errors import RegistryError
from pipelines.evaluation.classification import embed_samples, evaluate
from pipelines.evaluation.explanation_drift import on_one_grid
from pipelines.evaluation.explanations import LocalizationResult
from pipelines.evaluation.paired import Interval
from pipelines.evaluation.phase_snapshots import (
    PROBE_COUNT,
    PhaseSnapshot,
    choose_probes,
    evidence_moved,
    flatten_weights,
    map_movement,
    take_snapshot,
)
from pipelines.progress import Reporter
from pipelines.reports.cases import NeighbourIndex
from pipelines.reports.compare import compare_runs
from pipelines.reports.review import review_run
from pipelines.reports.summary import summarize_evaluations
from pipelines.tracking.registry import fetch_bundle
from pipelines.training.train import find_rates, train_model

GEOMETRY = get_backbone("efficientnet_lite0").geometry()
PHASES = (PhaseConfig("head", "head", 4, 4e-3), PhaseConfig("top", "stage7.0", 3, 1e-3))
CONFIG = TrainConfig(phases=PHASES, views=2, batch_size=8, class_weights="balanced", sanity="block")


@pytest.fixture(scope="module")
def story(butterflies, tmp_path_factory):
    """A store with two trained runs; (data, runs, client, folder)."""
    folder = tmp_path_factory.mktemp("story")
    uri = f"sqlite:///{folder}/mlflow.db"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        found = scan_folder(butterflies)
        first = train_model(found, CONFIG, name="wings")
        second = train_model(found, replace(CONFIG, seed=1, phases=PHASES[:1], sanity="none"), name="wings")
        yield found, (first, second), mlflow.MlflowClient(), folder


def artefact(client, run, path: str) -> str:
    with open(client.download_artifacts(run.run_id, path)) as file:  # noqa: PTH123
        return file.read()


def browse(page, folder, script: str = "") -> str:
    """The page's text content after a real browser has run it, with a script of ours at its end."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    copy = folder / "browsed.html"
    copy.write_text(page.replace("</body>", f"<script>{script}</script></body>"))
    done = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         f"--user-data-dir={folder}/chromium", "--virtual-time-budget=2000", "--dump-dom", f"file://{copy}"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-1000:]
    return done.stdout


def test_a_run_says_what_it_was_made_of(story):
    found, (first, _), client, _ = story
    run = client.get_run(first.run_id)
    tags = run.data.tags
    assert tags["dataset.digest"] == found.digest
    assert (
        tags["version.torch"] == torch.__version__.split("+")[0] or tags["version.torch"] in torch.__version__
    )
    assert int(tags["peak_memory_mb"]) > 100
    assert run.data.params["phase2.train_from"] == "stage7.0"
    assert json.loads(run.data.params["class_weights.values"]) == dict.fromkeys(found.classes, 1.0)
    assert config_from_toml(artefact(client, first, "config.toml")) == replace(CONFIG, task="multiclass")
    assert re.search(r"^torch==", artefact(client, first, "environment.txt"), re.MULTILINE)
    (used,) = run.inputs.dataset_inputs
    assert (used.dataset.name, used.dataset.digest) == (found.name, found.digest[:36])
    assert any(key.startswith("system/cpu") for key in run.data.metrics)
    children = client.search_runs([run.info.experiment_id], f"tags.mlflow.parentRunId = '{first.run_id}'")
    assert sorted(child.info.run_name for child in children) == ["1 head", "2 top"]
    (top,) = [child for child in children if child.info.run_name == "2 top"]
    assert top.data.params["batch_norm"] == "frozen"
    assert len(client.get_metric_history(top.info.run_id, "val_loss")) == 4


def test_runs_are_told_apart_by_name_and_described_with_links_that_lead_somewhere(story):
    _, (first, second), client, _ = story
    runs = [client.get_run(trained.run_id) for trained in (first, second)]
    names = [run.info.run_name for run in runs]
    assert names[0] != names[1]
    for number, name in enumerate(names):
        assert re.match(rf"wings efficientnet_lite0 default seed {number} \d\d \w+ \d\d:\d\d:\d\d$", name)
    assert runs[0].data.params["preset"] == "default"
    note = runs[0].data.tags["mlflow.note.content"]
    assert client.get_model_version("wings", first.version).description == note
    assert note.startswith("**val: ")
    assert "pictures right" in note.splitlines()[0]
    assert "| head | 4 of 4 |" in note
    assert "The model sees the whole of each picture" in note
    base = f"#/experiments/{runs[0].info.experiment_id}/runs/{first.run_id}/artifacts/"
    links = re.findall(r"\]\((.*?)\)", note)
    assert len(links) == 5
    for link in links:
        assert link.startswith(base)
        assert client.download_artifacts(first.run_id, link.removeprefix(base))


def test_the_first_point_of_a_curve_is_of_a_head_that_was_trained(story):
    _, (first, _), client, _ = story
    experiment = client.get_run(first.run_id).info.experiment_id
    children = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{first.run_id}'")
    head, top = sorted(children, key=lambda child: child.info.run_name)
    first_steps = {
        (child.info.run_name, key): client.get_metric_history(child.info.run_id, key)[0].step
        for child in (head, top)
        for key in ("val_loss", "val_accuracy", "train_loss", "rate.head")
    }
    assert {step for (name, _), step in first_steps.items() if name == "1 head"} == {1}
    assert first_steps["2 top", "val_loss"] == 0, "what the phase began with, which the head was trained for"
    assert first_steps["2 top", "train_loss"] == first_steps["2 top", "rate.head"] == 1


def test_the_logged_model_names_what_it_takes_and_gives(story):
    found, (first, _), client, _ = story
    source = client.get_model_version("wings", first.version).source
    signature = mlflow.models.get_model_info(source).signature
    assert [column.name for column in signature.inputs.inputs] == ["image"]
    outputs = ["label", "score", "accepted", *(f"score_{name}" for name in found.classes)]
    assert [column.name for column in signature.outputs.inputs] == outputs


def test_the_commit_is_that_of_the_repository_around(tmp_path, monkeypatch):
    from pipelines.training.environment import git_tags

    assert git_tags(tmp_path) == {}
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    assert git_tags(tmp_path) == {}, "no commit yet"
    (tmp_path / "f").write_text("1")
    subprocess.run(["git", "-C", tmp_path, "add", "f"], check=True)
    subprocess.run(["git", "-C", tmp_path, *identity, "commit", "-qm", "x"], check=True)
    head = subprocess.run(["git", "-C", tmp_path, "rev-parse", "HEAD"], capture_output=True, text=True).stdout
    assert git_tags(tmp_path) == {"mlflow.source.git.commit": head.strip(), "git.changed": "false"}
    (tmp_path / "f").write_text("2")
    assert git_tags(tmp_path)["git.changed"] == "true"


def test_metrics_are_those_of_the_bundle_and_linked_to_the_model(story):
    found, (first, _), client, folder = story
    source = client.get_model_version("wings", first.version).source
    model = client.get_logged_model(source.removeprefix("models:/"))
    linked = {metric.key: metric.value for metric in model.metrics}
    run = client.get_run(first.run_id)
    assert linked["val_accuracy"] == run.data.metrics["val_accuracy"]
    assert linked["test_ece"] == run.data.metrics["test_ece"]
    assert first.baseline == run.data.metrics["baseline_accuracy"]
    assert len(client.get_metric_history(first.run_id, "val_accuracy")) == 1
    checked = load_bundle(fetch_bundle("wings/1", folder / "fetched").folder)
    assert checked.model.scoring.temperature == pytest.approx(run.data.metrics["temperature"])
    assert checked.model.scoring.temperature != 1.0
    again = evaluate(checked.model, found.val, "val")
    for name, value in again.metrics.items():
        assert value == pytest.approx(run.data.metrics[f"val_{name}"], abs=1e-4), name


def test_forensics_say_what_each_phase_moved(story):
    found, (first, _), client, _ = story
    told = json.loads(artefact(client, first, "forensics/forensics.json"))
    assert [each["phase"] for each in told["phases"]] == ["head", "top"]
    head, top = (each["moved"] for each in told["phases"])
    assert {name for name, share in head.items() if share} == {"head"}
    assert {name for name, share in top.items() if share} == {"stage7.0", "top", "head"}
    assert told["evidence_moved"]["top"] > 0
    assert told["probes"] == [sample.name for sample in choose_probes(found)]
    for path in ("forensics/probes.png", "forensics/weights_moved.png", "history.png", "reliability_val.png"):
        assert client.download_artifacts(first.run_id, path)


def test_probes_are_the_same_for_everybody_and_of_every_class(story):
    found, _, _, _ = story
    probes = choose_probes(found)
    shuffled = replace(found, val=found.val[::-1])
    assert choose_probes(shuffled) == probes
    assert {sample.label for sample in probes} == set(range(5))
    assert len(probes) == len(set(probes)) == PROBE_COUNT


@pytest.mark.parametrize(
    ("before", "after", "moved"),
    [
        ([[1, 0], [0, 0]], [[5, 0], [0, 0]], 0.0),
        ([[1, 0], [0, 0]], [[0, 0], [0, 1]], 1.0),
        ([[1, 1], [0, 0]], [[1, 0], [1, 0]], 0.5),
        ([[1, -9], [0, 0]], [[1, 0], [0, 0]], 0.0),
        # An empty map has no place from which anything could have moved.
        ([[0, -1], [0, 0]], [[1, 0], [0, 0]], None),
        ([[0, -1], [0, 0]], [[-1, 0], [0, 0]], None),
    ],
)
def test_evidence_moves_as_shares_of_its_sum(before, after, moved):
    assert evidence_moved(before, after) == (moved if moved is None else pytest.approx(moved))


def test_a_phase_moves_what_can_be_compared():
    def snapshot(name: str, *maps: list[list[float]]) -> PhaseSnapshot:
        return PhaseSnapshot(name, list(maps), [0.5] * len(maps), {})

    one, other, empty = [[1.0, 0.0]], [[0.0, 1.0]], [[-1.0, 0.0]]
    snapshots = [snapshot("head", one, empty), snapshot("top", other, one), snapshot("last", empty, empty)]
    assert map_movement(snapshots) == {"top": 1.0}


def test_weights_move_as_far_as_they_were_pushed(story):
    found, _, _, _ = story
    model = TransferModel.create("resnet18", found.classes, pretraining="none")
    before = flatten_weights(model)
    with torch.no_grad():
        for parameter in model.block("layer4.1").parameters():
            parameter.mul_(1.5)
    taken = take_snapshot(model, choose_probes(found, 2), "p", before)
    assert taken.moved["layer4.1"] == pytest.approx(0.5, rel=1e-4)
    assert taken.moved["layer4.0"] == taken.moved["head"] == 0


def test_the_review_can_be_read_and_filtered_in_a_browser(story, tmp_path):
    _, (first, _), client, _ = story
    page = artefact(client, first, "review/review.html")
    assert not re.search(r"(?:src|href)=[\"']?(?!data:)(?:https?:|//)", page), "nothing outside"
    wrong = [item for each in first.evaluations.values() for item in each.wrong]
    assert wrong, "this model is meant to be imperfect"
    dom = browse(page, tmp_path)
    assert f"{len(wrong) + 6} of {len(wrong) + 6} pictures" in dom
    assert dom.count('class="near"') == len(wrong) + 6
    assert (
        sum(each in dom for each in summarize_evaluations(list(first.evaluations.values()), first.baseline))
        >= 4
    )
    order = re.findall(r'<span class="name">((?:val|test)/[^<]+)</span>', dom)[: len(wrong)]
    assert order == [item.sample.name for item in sorted(wrong, key=lambda item: -item.error)]
    # A right answer is held against the runner-up; against itself there would be no difference.
    assert dom.count("runner-up <b>") == 6
    assert "one class, no difference" not in dom
    assert "% of it seen by the model" not in dom, "all of it is"
    name = wrong[0].truth
    pick = (
        "const f = document.querySelector('[data-filter=true]');"
        f"f.value = '{name}'; f.dispatchEvent(new Event('change'));"
        "document.querySelectorAll('.case[hidden]').forEach(c => c.remove());"
    )
    filtered = browse(page, tmp_path, pick)
    close = len(re.findall(rf'data-true="[^"]*{name}', dom))
    assert f"{close} of {len(wrong) + 6} pictures" in filtered
    assert filtered.count('class="near"') == close


def test_mistakes_are_a_table_with_pictures_in_mlflow(story):
    _, (first, _), client, _ = story
    table = mlflow.load_table("review/mistakes.json", run_ids=[first.run_id])
    wrong = [item for each in first.evaluations.values() for item in each.wrong]
    assert isinstance(table, pd.DataFrame)
    assert sorted(table["picture"]) == sorted(item.sample.name for item in wrong)
    stored = [file.path for file in client.list_artifacts(first.run_id, "table_images/review/mistakes")]
    assert len([path for path in stored if path.endswith(".png")]) == 3 * len(wrong)


def test_a_second_review_leaves_one_of_everything(story):
    found, (first, _), client, _ = story
    before = artefact(client, first, "review/mistakes.json")
    html = review_run(first.run_id, found)
    assert "Review of wings" in html
    assert artefact(client, first, "review/mistakes.json") == before
    with pytest.raises(RegistryError, match="another data set"):
        review_run(first.run_id, replace(found, val=found.val[1:]))


def test_the_nearest_training_pictures_are_the_nearest(story):
    found, _, _, folder = story
    model = load_bundle(fetch_bundle("wings/1", folder / "nearest").folder).model
    near = NeighbourIndex(model, found.train, no_progress)
    vectors = embed_samples(model, found.train)
    sample, pooled = found.train[7], vectors[7]
    first = near.nearest(pooled, sample.labels, "of another picture")
    assert first[0].name == sample.name
    assert first[0].similarity == pytest.approx(1.0, abs=1e-4)
    others = near.nearest(pooled, sample.labels, sample.sha256)
    assert sample.name not in [each.name for each in others]
    cosine = torch.nn.functional.cosine_similarity(vectors, pooled.unsqueeze(0))
    cosine[7] = -1
    assert others[0].name == found.train[int(cosine.argmax())].name
    assert others[0].similarity == pytest.approx(float(cosine.max()), abs=1e-5)
    assert others[0].same_class == (found.train[int(cosine.argmax())].label == sample.label)


def test_a_comparison_names_each_picture_that_changed_sides(story, tmp_path):
    found, (first, second), client, _ = story
    made = compare_runs(first.run_id, second.run_id, found, reporter=Reporter())
    kinds = {"fixed": 0, "broken": 0, "other mistake": 0, "same": 0}
    for split in ("val", "test"):
        both = zip(first.evaluations[split].samples, second.evaluations[split].samples, strict=True)
        for before, after in both:
            if before.is_correct != after.is_correct:
                kinds["fixed" if after.is_correct else "broken"] += 1
            else:
                kinds["same" if before.answer == after.answer else "other mistake"] += 1
    assert {kind: sum(pair.kind == kind for pair in made.pairs) for kind in kinds} == kinds
    assert kinds["fixed"] + kinds["broken"] > 0, "these two models are meant to differ"
    metrics = client.get_run(made.run_id).data.metrics
    assert metrics["val_fixed"] + metrics["test_fixed"] == kinds["fixed"]
    difference = (
        second.evaluations["test"].metrics["accuracy"] - first.evaluations["test"].metrics["accuracy"]
    )
    assert metrics["test_accuracy_change"] == pytest.approx(difference)
    assert 0 < metrics["test_evidence_moved"] < 1
    assert client.get_run(made.run_id).info.status == "FINISHED"
    dom = browse(artefact(client, made, "compare/compare.html"), tmp_path)
    for pair in made.pairs:
        if pair.kind in ("fixed", "broken"):
            assert pair.evaluated[0].sample.name in dom
    again = compare_runs(first.run_id, first.run_id, found)
    assert all(pair.kind == "same" and pair.moved in (0, None) for pair in again.pairs)


def test_models_that_cannot_be_compared_are_refused(story):
    found, (first, second), _, _ = story
    with pytest.raises(RegistryError, match="the data has"):
        compare_runs(first.run_id, second.run_id, replace(found, classes=[*found.classes[:-1], "other"]))


def test_maps_of_two_backbones_are_comparedon_one_grid():
    def of(values):
        return Attribution(Target(0, "a"), "grad_cam", "b", "ok", np.array(values, np.float32))

    coarse, fine = of([[1.0, 0.0]]), of([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    frame = GEOMETRY.frame(300, 200)
    one, other = on_one_grid((coarse, frame), (fine, frame))
    assert np.shape(one) == np.shape(other) == (3, 6)
    assert evidence_moved(one, other) == pytest.approx(0.25)


def test_maps_of_two_views_are_compared_on_the_picture():
    """The same place of a wide picture, in the grid of its centre and in that of the whole of it."""
    values = np.zeros((8, 8), np.float32)
    values[4, 4] = 1.0
    own = Attribution(Target(0, "a"), "grad_cam", "b", "ok", values)
    crop, whole = GEOMETRY.frame(800, 200), replace(GEOMETRY, view="whole").frame(800, 200)
    elsewhere = np.zeros((8, 8), np.float32)
    elsewhere[4, 0] = 1.0
    other = Attribution(Target(0, "a"), "grad_cam", "b", "ok", elsewhere)
    same = evidence_moved(*on_one_grid((own, crop), (own, whole)))
    far = evidence_moved(*on_one_grid((own, crop), (other, whole)))
    assert same < 0.8 < far == pytest.approx(1.0, abs=0.01)


def test_rates_are_found_for_each_phase(story):
    found, _, _, _ = story
    tests = find_rates(found, replace(CONFIG, augmentation=Augmentation()))
    assert [test.phase for test in tests] == ["head", "top"]
    assert all(1e-5 < test.suggested < 1 for test in tests)


def test_the_summary_names_what_a_reviewer_asks_first(story):
    _, (first, _), _, _ = story
    told = " ".join(summarize_evaluations(list(first.evaluations.values()), first.baseline))
    test = first.evaluations["test"]
    assert f"test: {10 - len(test.wrong)} of 10 pictures right" in told
    assert "linear probe" in told
    assert "trained on as well" not in told
    both = summarize_evaluations([test], shared=[("train/a.jpg", "test/b.jpg")])
    assert any("One held-out picture was trained on as well, such as test/b.jpg" in each for each in both)
    assert "only 10 pictures: one more mistake would move its accuracy by 10.0 points" in told


def test_the_summary_says_how_much_was_seen_where_it_matters(story):
    _, (first, _), _, _ = story
    test = first.evaluations["test"]
    wide = [replace(item, sample=replace(item.sample, width=640, height=240)) for item in test.samples]
    cropped = " ".join(summarize_evaluations([replace(test, samples=wide)], geometry=GEOMETRY))
    seen = GEOMETRY.frame(640, 240).seen_share
    assert f"On test the model saw {seen:.0%} of a picture's area on average" in cropped
    assert "view = whole" in cropped
    whole = replace(GEOMETRY, view="whole")
    assert "cropped away" not in " ".join(summarize_evaluations([test], geometry=whole))


@pytest.mark.parametrize(("pointing", "beaten"), [(0.729, True), (0.95, False)])
def test_the_summary_says_where_the_evidence_lies_also_when_it_is_unflattering(story, pointing, beaten):
    _, (first, _), _, _ = story
    mean = Localization(0.87, 0.7, pointing, 0.864, spot=0.81, energy=0.65, squared_energy=0.74, area=0.41)
    above = {"spot": Interval(0.06, 0.02, 0.1), "other_class": Interval(0.3, 0.2, 0.4)}
    located = [
        LocalizationResult("val", "object", method, "top", 72, mean, above)
        for method in ("grad_cam", "hires_cam")
    ]
    (sentence,) = [
        text for text in summarize_evaluations([first.evaluations["val"]], located=located) if "AUROC" in text
    ]
    assert "AUROC of 0.87, where 0.5 is chance: +0.06 (+0.02 to +0.10) beside a plain spot" in sentence
    assert "+0.30 (+0.20 to +0.40) beside the map of another class" in sentence
    assert "squared, with no other order, would have 74%" in sentence
    assert "65% of the evidence lies on the object, which takes 41% of what the model sees" in sentence
    assert f"{pointing:.0%} of 72 pictures" in sentence
    assert "86%" in sentence
    assert ("no better than always the middle" in sentence) == beaten


def test_a_run_keeps_samples_of_its_validation_pictures(story):
    found, (first, _), client, _ = story
    labels = json.loads(artefact(client, first, "samples/samples.json"))
    files = {item.path for item in client.list_artifacts(first.run_id, "samples")}
    assert files == {"samples/samples.json", *(f"samples/{name}" for name in labels)}
    assert set(labels.values()) <= set(found.classes)
    assert len(set(labels.values())) >= len({item.truth for item in first.evaluations["val"].samples}) - 1
    path = client.download_artifacts(first.run_id, "samples/01.jpg")
    assert max(PIL.Image.open(path).size) <= 512
