"""The registry: promotion, versions, and MLflow's own loader."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from models.bundle import load_bundle
from models.errors import BundleError
from pipelines.errors import RegistryError
from pipelines.release.promote import promote, promote_previous
from pipelines.tracking.registry import fetch_bundle, find_champion, find_version, register_version
from pipelines.tracking.runs import RunLogger, open_runs


def registered(folder, name: str, accuracy: float, digest: str = "d") -> str:
    """Log a bundle as a new version with that validation accuracy."""
    run_id, _ = open_runs(f"run of {name}", [], folder="none")
    client = mlflow.MlflowClient()
    client.set_tag(run_id, "dataset.digest", digest)
    client.log_metric(run_id, "val_accuracy", accuracy, timestamp=1000)
    metrics = {"val_accuracy": accuracy}
    version = register_version(folder, name=name, run_id=run_id, metrics=metrics, timestamp_ms=1000)
    assert version.run_id == run_id
    return str(version.version)


def champion(name: str) -> str:
    return str(find_champion(name).version)


def test_only_a_version_that_is_better_becomes_champion(in_tmp, bundle_folder):
    registered(bundle_folder, "three", 0.90)
    assert promote("three").reason.startswith("first champion")
    registered(bundle_folder, "three", 0.85)
    refused = promote("three")
    assert not refused.promoted
    assert "0.850 is below 0.900 of version 1, the champion" in refused.reason
    assert champion("three") == "1"
    registered(bundle_folder, "three", 0.95, digest="other")
    better = promote("three/3")
    assert better.promoted
    assert "different data" in better.reason
    assert champion("three") == "3"
    assert "already" in promote("three@champion").reason


def test_a_tie_keeps_the_champion_unless_it_is_accepted(in_tmp, bundle_folder):
    for _ in range(2):
        registered(bundle_folder, "three", 0.90)
    promote("three/1")
    refused = promote("three/2")
    assert not refused.promoted
    assert "unless a tie is accepted" in refused.reason
    assert champion("three") == "1"
    assert promote("three/2", accept_tie=True).promoted
    assert champion("three") == "2"


def test_several_labels_are_judged_by_average_precision(in_tmp, bundle_folder):
    for accuracy, precision in ((0.98, 0.6), (0.97, 0.8)):
        number = registered(bundle_folder, "three", accuracy)
        run_id = find_version(f"three/{number}").run_id
        mlflow.MlflowClient().log_metric(run_id, "val_mean_average_precision", precision)
    promote("three/1")
    better = promote("three/2")
    assert better.promoted
    assert "val_mean_average_precision 0.800 is above 0.600" in better.reason


def test_a_forced_version_keeps_the_reason_and_the_previous_champion_comes_back(in_tmp, bundle_folder):
    with pytest.raises(RegistryError, match="no model"):
        promote_previous("three")
    registered(bundle_folder, "three", 0.90)
    registered(bundle_folder, "three", 0.70)
    promote("three/1")
    with pytest.raises(RegistryError, match="no champion before"):
        promote_previous("three")
    forced = promote("three/2", force="the camera was changed")
    assert forced.promoted
    assert "0.700 is below 0.900" in forced.reason
    assert find_version("three/2").tags["promotion.forced"] == "the camera was changed"
    back = promote_previous("three")
    assert (back.version, champion("three")) == ("1", "1")
    assert promote_previous("three").version == "2", "and forth"


def test_a_broken_version_never_becomes_champion(in_tmp, bundle_folder):
    registered(bundle_folder, "three", 0.90)
    promote("three")
    registered(bundle_folder, "three", 0.99)
    weights = sorted(in_tmp.rglob("mlruns/**/weights.safetensors"), key=lambda path: path.stat().st_mtime)[-1]
    damaged = bytearray(weights.read_bytes())
    damaged[-5] ^= 255
    weights.write_bytes(damaged)
    with pytest.raises(BundleError, match="altered"):
        promote("three/2")
    assert str(find_champion("three").version) == "1"


def test_a_fetched_bundle_knows_its_name_and_version(in_tmp, bundle_folder):
    registered(bundle_folder, "three", 0.9)
    registered(bundle_folder, "three", 0.9)
    for reference, version in (("three", "2"), ("three/1", "1"), ("models:/three/2", "2")):
        folder = in_tmp / f"got-{reference.replace('/', '_')}"
        fetch_bundle(reference, folder)
        origin = load_bundle(folder).provenance
        assert (origin.model, origin.version) == ("three", version)
        assert origin.digest == load_bundle(bundle_folder).provenance.digest


@pytest.mark.parametrize("reference", ["none", "none/1", "none@champion", "../etc", "a b"])
def test_what_the_registry_does_not_have(in_tmp, reference):
    with pytest.raises(RegistryError):
        find_version(reference)


def test_mlflows_own_loader_predicts_in_a_fresh_process(in_tmp, bundle_folder, photos):
    registered(bundle_folder, "three", 0.9)
    promote("three")
    picture = sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0]
    script = (
        "import sys, mlflow, pandas as pd\n"
        "import models\n"
        "model = mlflow.pyfunc.load_model('models:/three@champion')\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "assert models.__file__.endswith('elsewhere/models.py')\n"
        "print(model.predict(pd.DataFrame({'image': [data, data]})).to_json())\n"
    )
    (in_tmp / "elsewhere").mkdir()
    (in_tmp / "elsewhere/models.py").write_text("# Of the user's own.\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(picture)],
        capture_output=True,
        text=True,
        cwd=in_tmp / "elsewhere",
    )
    assert done.returncode == 0, done.stderr[-2000:]
    frame = pd.DataFrame(json.loads(done.stdout.splitlines()[-1]))
    assert list(frame["label"]) == ["bee", "bee"]
    np.testing.assert_allclose(frame[["score_ant", "score_bee", "score_flamingo"]].sum(axis=1), 1)


def test_the_logged_model_holds_no_pickle(in_tmp, bundle_folder):
    registered(bundle_folder, "three", 0.9)
    suffixes = {path.suffix for path in in_tmp.rglob("mlruns/**/*") if path.is_file()}
    assert not suffixes & {".pkl", ".pickle", ".pt", ".pth", ".bin"}


def test_a_registry_that_cannot_be_asked_makes_no_first_champion(in_tmp, bundle_folder, monkeypatch):
    registered(bundle_folder, "three", 0.9)

    def away(*_: object) -> None:
        raise mlflow.exceptions.MlflowException("database is locked")

    monkeypatch.setattr(mlflow.MlflowClient, "get_model_version_by_alias", away)
    with pytest.raises(RegistryError, match="cannot be asked: database is locked"):
        promote("three/1")


def test_packaging_needs_no_build_to_make_the_bento_model(in_tmp, bundle_folder):
    from pipelines.release.package import package

    registered(bundle_folder, "three", 0.9)
    promote("three")
    with pytest.raises(RegistryError):
        package("four@champion")


def test_registering_a_run_again_finds_the_version_it_has(in_tmp, bundle_folder):
    registered(bundle_folder, "three", 0.9)
    version = find_version("three")
    again = register_version(
        bundle_folder, name="three", run_id=version.run_id, metrics={"val_accuracy": 0.9}, timestamp_ms=1000
    )
    assert again.version == version.version
    history = mlflow.MlflowClient().get_metric_history(version.run_id, "val_accuracy")
    assert [metric.value for metric in history] == [0.9], "linked to the model, not logged again"


def test_a_review_of_a_run_whose_store_is_locked_says_so(in_tmp, bundle_folder, monkeypatch):
    from pipelines.tracking.registry import find_run_version

    registered(bundle_folder, "three", 0.9)
    run_id = find_version("three").run_id
    assert find_run_version(run_id) == "three/1"

    def away(*_: object) -> None:
        raise mlflow.exceptions.MlflowException("database is locked")

    monkeypatch.setattr(mlflow.MlflowClient, "search_model_versions", away)
    with pytest.raises(RegistryError, match="cannot be asked: database is locked"):
        find_run_version(run_id)


def test_what_is_too_long_for_a_parameter_is_kept_whole_as_an_artefact(in_tmp, tmp_path):
    run_id, _ = open_runs("long", [], folder="none")
    log = RunLogger(run_id, tmp_path / "outbox")
    weights = json.dumps({f"class {number}": 1.0 for number in range(2_000)})
    log.params({"class_weights.values": weights, "short": 1})
    log.flush(30)
    log.close()
    client = mlflow.MlflowClient()
    kept = client.get_run(run_id).data.params
    assert kept["short"] == "1"
    assert kept["class_weights.values"].endswith("in the artefact parameters/class_weights.values.txt")
    path = client.download_artifacts(run_id, "parameters/class_weights.values.txt")
    assert Path(path).read_text() == weights
