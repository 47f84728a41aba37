"""The gate: what passes, fails, cannot be told or judged; then a real registry, the alias, its evidence."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from xml.etree import ElementTree

import mlflow
import numpy as np
import pytest
import torch

from models.attribution.registry import METHODS
from models.bundle import load_bundle
from models.errors import UnknownChoice
from models.explainer import Explainer
from pipelines.data.dataset import Sample, scan_folder
from pipelines.errors import RegistryError
from pipelines.evaluation.explanation_drift import PictureDrift
from pipelines.progress import Reporter
from pipelines.release.gate import judge
from pipelines.release.judged_version import JudgedVersion, _shortcuts
from pipelines.release.policy import DEFAULT_POLICY, Check, Policy
from pipelines.tracking.registry import claim_promotion, release_claim
from tests.support.postgres import running_postgres
from tests.support.serving import PROJECT
from tests.support.small_timm import fitted_network, write_hub_folder

CLASSES = ("ant", "bee", "wasp")


def judged(right, *, number="2", facts=None, localization=None):
    """A version whose answers are known."""
    right = np.asarray(right, dtype=bool)
    count = len(right)
    labels = np.arange(count) % 3
    samples = tuple(
        Sample(None, f"{n}.jpg", (int(label),), f"{n:064d}", 10, 10) for n, label in enumerate(labels)
    )
    return JudgedVersion(
        name="m", number=number, run_id="r", bundle=None, classes=CLASSES, samples=samples,
        splits=np.array(["val", "test"] * count)[:count], right=right,
        truths=tuple((int(label),) for label in labels), hits=tuple((bool(hit),) for hit in right),
        confidence=np.where(right, 0.9, 0.6), truth=np.where(right, 0.9, 0.2), explained=(),
        faithfulness=np.full(count, np.nan),
        localization=np.full(count, np.nan) if localization is None else np.asarray(localization, float),
        facts=facts or {},
    )  # fmt: skip


def answers(count, wrong, *, seed=0):
    right = np.ones(count, dtype=bool)
    right[np.random.default_rng(seed).permutation(count)[:wrong]] = False
    return right


def statuses(version, champion, *checks, **options):
    return [item.status for item in judge(version, champion, Policy(checks), **options).results]


ACCURACY = Check("accuracy", compare="champion", margin=0.02)


def test_a_version_that_is_clearly_worse_fails_and_blocks():
    verdict = judge(judged(answers(600, 90)), judged(answers(600, 12), number="1"), Policy((ACCURACY,)))
    (result,) = verdict.results
    assert result.status == "failed"
    assert not verdict.passed
    assert result.flips.broken > result.flips.fixed
    assert result.flips.p_value < 1e-6
    assert "Blocked by accuracy" in verdict.summary


def test_the_same_answers_pass_however_few_they_are():
    version = judged(answers(30, 3))
    assert statuses(version, judged(answers(30, 3), number="1"), ACCURACY) == ["passed"]


def test_noise_on_a_small_set_neither_blocks_nor_passes():
    version, champion = judged(answers(40, 6, seed=1)), judged(answers(40, 4, seed=2), number="1")
    verdict = judge(version, champion, Policy((ACCURACY,)))
    assert verdict.results[0].status == "too small to tell"
    assert verdict.passed
    assert not judge(version, champion, Policy((ACCURACY,), too_small="block")).passed


def test_a_figure_that_was_not_measured_could_not_be_judged_and_blocks():
    check = Check("localization", min=0.3)
    verdict = judge(judged(answers(60, 3)), None, Policy((check,)))
    assert verdict.results[0].status == "could not be judged"
    assert "no masks or boxes" in verdict.results[0].reason
    assert not verdict.passed
    assert judge(judged(answers(60, 3)), None, Policy((replace(check, severity="warn"),))).passed
    measured = judged(answers(60, 3), localization=[0.5] * 60)
    assert statuses(measured, None, check) == ["passed"]


def test_bounds_slices_splits_and_facts():
    right = np.ones(300, dtype=bool)
    right[1::3] = False  # no bee is found
    version = judged(right, facts={"size_mb": 30.0, "barred_methods": 2.0})
    champion = judged(np.ones(300, dtype=bool), number="1", facts={"size_mb": 10.0})
    assert statuses(
        version,
        champion,
        Check("recall", slice="each class", min=0.5),
        Check("accuracy", min=0.5, split="val"),
        Check("accuracy", max=0.5, split="test"),
        Check("worst_class_recall", min=0.1),
        Check("balanced_accuracy", min=0.5),
        Check("loss", max=0.1),
        Check("calibration_error", max=0.01),
        Check("size_mb", compare="champion", margin=30),
        Check("size_mb", max=20),
        Check("barred_methods", max=2),
        Check("latency_ms", max=100),
    ) == ["passed", "failed", "passed", "passed", "failed", "failed", "passed", "failed", "failed", "passed",
          "failed", "passed", "could not be judged"]  # fmt: skip


def test_of_several_labels_each_has_a_recall_of_its_own():
    version = judged(np.arange(300) % 10 != 0)
    # Each picture has the next class too, and of the wasps among these none is found.
    both = tuple((label, (label + 1) % 3) for (label,) in version.truths)
    hits = tuple((hit, second != 2) for (hit,), (_, second) in zip(version.hits, both, strict=True))
    version = replace(version, truths=both, hits=hits)
    everything = np.arange(300)
    recalls = {name: version.figure(Check("recall", slice=name, min=0.5)) for name in CLASSES}
    for name, figure in recalls.items():
        place = CLASSES.index(name)
        own = [
            hit
            for labels, found in zip(both, hits, strict=True)
            for label, hit in zip(labels, found, strict=True)
            if label == place
        ]
        count = version.count(Check("recall", slice=name, min=0.5))
        assert count == len(own) == 200
        assert figure(np.arange(count)) == pytest.approx(np.mean(own))
    assert recalls["wasp"](np.arange(200)) < 0.5 < recalls["ant"](np.arange(200))
    worst = version.figure(Check("worst_class_recall", min=0.5))(everything)
    assert worst == pytest.approx(recalls["wasp"](np.arange(200)))


def test_a_slice_that_is_no_class_is_refused_with_the_classes():
    with pytest.raises(UnknownChoice, match="ant, bee, wasp"):
        judge(judged(answers(30, 3)), None, Policy((Check("recall", slice="moth", min=0.5),)))


def test_a_first_champion_needs_no_comparison():
    verdict = judge(judged(answers(60, 3)), None, Policy((ACCURACY, Check("accuracy", min=0.8))))
    assert [item.status for item in verdict.results] == ["passed", "passed"]


def test_by_the_default_policy_a_first_champion_waits_for_nothing_that_it_is_compared_to():
    facts = dict.fromkeys(("barred_methods", "leaked_pictures", "near_duplicates", "label_errors"), 0.0)
    facts |= {"size_mb": 10.0, "latency_ms": 9.0, "shortcut_findings": 0.0}
    verdict = judge(judged(answers(600, 12), facts=facts), None, DEFAULT_POLICY)
    odd = {item.check.metric: item.status for item in verdict.results if item.status != "passed"}
    # No figure of the explanations was measured for this one.
    assert odd == {"faithfulness": "could not be judged"}
    assert verdict.passed


def test_a_champion_of_other_classes_is_nothing_to_compare_to_and_blocks():
    version = judged(answers(60, 3), facts={"changed_classes": 2.0})
    verdict = judge(version, None, Policy((ACCURACY, Check("changed_classes", max=0))), classes_changed=True)
    assert [item.status for item in verdict.results] == ["could not be judged", "failed"]
    assert "other classes" in verdict.results[0].reason


def drift_of(moved, *, seed=0, spread=0.05):
    generator = np.random.default_rng(seed)
    return [
        PictureDrift(f"{n}.jpg", f"{n:064d}", CLASSES[n % 3], "both right", 0.5, 0.5,
                     float(np.clip(moved[n % 3] + generator.normal(0, spread), 0, 1)))
        for n in range(90)
    ]  # fmt: skip


def test_evidence_that_moved_more_than_a_seed_moves_it_fails_in_its_class_alone():
    check = Check("explanation_drift", max=0.1, slice="each class")
    version, champion = judged(answers(90, 5)), judged(answers(90, 5), number="1")
    seeds = drift_of((0.2, 0.2, 0.2), seed=1)
    results = judge(
        version, champion, Policy((check,)), drifts=drift_of((0.2, 0.7, 0.21)), seed_drifts=seeds
    ).results
    assert [(item.check.slice, item.status) for item in results] == [
        ("ant", "passed"), ("bee", "failed"), ("wasp", "passed"),
    ]  # fmt: skip
    assert "another seed's 20%" in results[1].reason


# ---------------------------------------------------------------- a real registry


@pytest.fixture(scope="module")
def data(butterflies):
    return scan_folder(butterflies)


@pytest.fixture(scope="module")
def hubs(data, tmp_path_factory):
    """Two versions as timm saves them: one that learnt, and one whose head forgot all classes but one."""
    network = fitted_network(data, data.classes)
    folders = {"good": write_hub_folder(network, data.classes, tmp_path_factory.mktemp("good"))}
    with torch.no_grad():
        network.get_classifier().bias[:4] -= 100
    folders["bad"] = write_hub_folder(network, data.classes, tmp_path_factory.mktemp("bad"))
    return folders


POLICY = """
[[checks]]
metric = "balanced_accuracy"
min = 0.2

[[checks]]
metric = "accuracy"
compare = "champion"
margin = 0.05
"""


def test_the_gate_blocks_promotes_overrides_and_demotes(hubs, butterflies, at_once, in_tmp):
    client = mlflow.MlflowClient()
    for source in ("good", "bad", "good"):
        done = at_once("adopt", str(hubs[source]), "--name", "wings", "--sanity", "none")
        assert done.returncode == 0, done.stdout + done.stderr
    (in_tmp / "policy.toml").write_text(POLICY)
    common = ("--data", str(butterflies), "--policy", "policy.toml", "--junit", "gate.xml")

    def champion():
        return str(client.get_model_version_by_alias("wings", "champion").version)

    first = at_once("promote", "wings/1", *common, "--then", "touch promoted")
    assert first.returncode == 0, first.stdout + first.stderr
    assert (in_tmp / "promoted").exists()
    assert champion() == "1"

    itself = at_once("promote", "wings/1", *common, "--dry-run")
    assert itself.returncode == 0, itself.stdout + itself.stderr

    blocked = at_once("promote", "wings/2", *common, "--then", "touch never")
    assert blocked.returncode == 3, blocked.stdout + blocked.stderr
    assert champion() == "1"
    assert not (in_tmp / "never").exists()
    suite = ElementTree.parse("gate.xml").getroot()
    assert int(suite.get("failures")) >= 1
    assert {case.get("name") for case in suite} >= {"accuracy (held out)"}
    version = client.get_model_version("wings", "2")
    assert version.tags["gate.verdict"] == "blocked"
    verdict = json.loads(mlflow.artifacts.load_text(f"runs:/{version.run_id}/gate/verdict.json"))
    assert verdict["passed"] is False
    assert verdict["policy"]["digest"].startswith(version.tags["gate.policy"].split()[1])
    assert "<h1>May wings version 2 go live?</h1>" in (in_tmp / "gate.html").read_text()

    dry = at_once("promote", "wings/3", *common, "--dry-run")
    assert dry.returncode == 0, dry.stdout + dry.stderr
    assert "This was a dry run" in dry.stdout
    assert "gate.verdict" not in client.get_model_version("wings", "3").tags

    forced = at_once("promote", "wings/2", *common, "--override", "the boss said so")
    assert forced.returncode == 0, forced.stdout + forced.stderr
    assert champion() == "2"
    assert client.get_model_version("wings", "2").tags["gate.override"] == "the boss said so"

    written = at_once("card", "wings/2", "--no-log")
    assert written.returncode == 0, written.stdout + written.stderr
    card = (in_tmp / "card" / "card.md").read_text()
    assert "What blocked was overridden: the boss said so" in card
    assert "accuracy (held out)" in card

    assert at_once("demote", "wings").returncode == 0
    assert champion() == "1"


@pytest.mark.soak
def test_the_gate_keeps_its_evidence_on_postgres(hubs, butterflies, at_once, in_tmp, monkeypatch):
    with running_postgres() as uri:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        mlflow.set_tracking_uri(uri)
        client = mlflow.MlflowClient()
        for source in ("good", "bad"):
            assert at_once("adopt", str(hubs[source]), "--name", "wings", "--sanity", "none").returncode == 0
        (in_tmp / "policy.toml").write_text(POLICY)
        common = ("--data", str(butterflies), "--policy", "policy.toml")
        assert at_once("promote", "wings/1", *common).returncode == 0
        assert at_once("promote", "wings/2", *common).returncode == 3
        assert str(client.get_model_version_by_alias("wings", "champion").version) == "1"
        version = client.get_model_version("wings", "2")
        assert version.tags["gate.verdict"] == "blocked"
        assert "gate/report.html" in {item.path for item in client.list_artifacts(version.run_id, "gate")}
        mlflow.set_tracking_uri(f"sqlite:///{in_tmp}/mlflow.db")


def test_of_two_promotions_at_once_one_wins_and_the_other_is_told(hubs, at_once, in_tmp):
    assert at_once("adopt", str(hubs["good"]), "--name", "race", "--sanity", "none").returncode == 0
    uri = mlflow.get_tracking_uri()
    outcomes = []
    gate = threading.Barrier(4)

    def claim(number):
        mlflow.set_tracking_uri(uri)
        gate.wait()
        try:
            outcomes.append(claim_promotion("race", f"{1e10 + number:.3f} claim{number}"))
        except RegistryError as error:
            outcomes.append(error)

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    won = [item for item in outcomes if isinstance(item, str)]
    assert len(won) <= 1
    assert all("judge again" in str(item) for item in outcomes if not isinstance(item, str))
    for key in won:
        release_claim("race", key)
    key = claim_promotion("race", "20000000000.000 later")
    with pytest.raises(RegistryError, match="under way"):
        claim_promotion("race", "20000000001.000 latest")
    release_claim("race", key)


@pytest.mark.soak
def test_another_seed_of_the_recipe_is_the_yardstick(butterflies, at_once, in_tmp):
    train = ("train", "--data", str(butterflies), "--preset", "quick", "--set", "sanity=none")
    for seed in ("1", "2"):
        done = at_once(*train, "--name", "wings", "--seed", seed)
        assert done.returncode == 0, done.stdout + done.stderr
    assert at_once("promote", "wings/1").returncode == 0
    (in_tmp / "policy.toml").write_text('[[checks]]\nmetric = "explanation_drift"\nmax = 0.15\n')
    words = ("promote", "wings/2", "--data", str(butterflies), "--policy", "policy.toml", "--dry-run")
    assert at_once(*words).returncode in (0, 3)
    assert "by default another seed&#39;s" in (in_tmp / "gate.html").read_text()
    done = at_once("baseline-drift", "wings/1", "--data", str(butterflies))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Another seed moves" in done.stdout
    done = at_once(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "moved, another seed&#39;s" in (in_tmp / "gate.html").read_text()


@pytest.mark.soak
@pytest.mark.timeout(960)
def test_a_label_planted_on_one_species_is_caught_and_another_seed_passes(tmp_path):
    command = [sys.executable, PROJECT / "benchmarks/gate.py", "--sets", "1", "--train", "24", "--val", "12"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "a third seed, yardstick measured: passes" in done.stdout
    assert "with the label, yardstick measured: blocked by cincta" in done.stdout


def test_a_version_whose_methods_are_all_barred_is_not_searched_for_shortcuts(bundle_folder, butterflies):
    explainer = Explainer(load_bundle(bundle_folder))
    explainer.disabled = dict.fromkeys(METHODS, "barred")
    assert _shortcuts(explainer, scan_folder(butterflies), {"shortcut_findings"}, Reporter()) == ({}, {})
