"""The registry: promotion, versions, and MLflow's own loader."""

from __future__ import annotations

import json
import subprocess
import sys

import mlflow
import numpy as np
import pandas as pd
import pytest

from models.bundle import load_bundle
from models.errors import BundleError
from pipelines.errors import RegistryError
from pipelines.release.promote import promote
from pipelines.tracking.registry import fetch_bundle, find_champion, find_version, register_version
from pipelines.tracking.runs import open_runs


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


def test_only_a_version_that_is_not_worse_becomes_champion(in_tmp, bundle_folder):
    registered(bundle_folder, "three", 0.90)
    assert promote("three").reason.startswith("first champion")
    registered(bundle_folder, "three", 0.85)
    refused = promote("three")
    assert not refused.promoted
    assert "0.850 is below 0.900 of champion version 1" in refused.reason
    assert find_champion("three").version == 1 or find_champion("three").version == "1"
    registered(bundle_folder, "three", 0.90, digest="other")
    better = promote("three/3")
    assert better.promoted
    assert "different data" in better.reason
    assert str(find_champion("three").version) == "3"
    assert "already" in promote("three@champion").reason


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
        "model = mlflow.pyfunc.load_model('models:/three@champion')\n"
        "data = open(sys.argv[1], 'rb').read()\n"
        "print(model.predict(pd.DataFrame({'image': [data, data]})).to_json())\n"
    )
    (in_tmp / "elsewhere").mkdir()
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
