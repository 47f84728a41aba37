"""A job as a run in MLflow, and a bundle that lies in an object store."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
import pytest
import yaml

from models.bundle import load_bundle
from pipelines.batch.remote_bundle import fetch_remote_bundle
from pipelines.batch.store import StoredFile
from pipelines.errors import DataError
from tests.support.object_store import running_s3
from tests.support.serving import PROJECT


def test_a_job_by_a_bundle_at_an_address_is_logged_as_a_run(
    bundle_folder, butterflies, at_once, in_tmp, monkeypatch
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{in_tmp}/mlflow.db")
    with running_s3("bundles") as client:
        for path in bundle_folder.rglob("*"):
            if path.is_file():
                client.upload_file(
                    str(path), "bundles", f"three/{path.relative_to(bundle_folder).as_posix()}"
                )
        done = at_once(
            "explain", str(butterflies / "val"), "--out", "out", "--bundle", "s3://bundles/three", "--track",
            "--engine", "eager",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        fetched = fetch_remote_bundle("s3://bundles/three", in_tmp / "fetched")
        assert load_bundle(fetched).provenance.digest == load_bundle(bundle_folder).provenance.digest
        with pytest.raises(DataError, match="has no files"):
            fetch_remote_bundle("s3://bundles/four", in_tmp / "none")
        with pytest.raises(DataError, match="has no files"):
            fetch_remote_bundle("s3://nowhere/three", in_tmp / "nowhere")
    run_id = next(line.split()[-1] for line in done.stdout.splitlines() if line.startswith("MLflow run"))
    client = mlflow.MlflowClient(f"sqlite:///{in_tmp}/mlflow.db")
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["pictures"] == 20
    assert run.data.params["method"] == '"grad_cam"'
    assert {"index.html", "job.json", "counts.csv", "rows.json"} <= {
        file.path for file in client.list_artifacts(run_id)
    }
    folder = Path(client.download_artifacts(run_id, "rows.json", str(in_tmp)))
    assert len(json.loads(folder.read_text())["data"]) == 20


def test_names_that_lead_out_of_a_bundle_are_refused(monkeypatch, tmp_path):
    class Odd:
        def files(self):
            return iter([StoredFile("../outside", (1, 0))])

    monkeypatch.setattr("pipelines.batch.remote_bundle.open_store", lambda address: Odd())
    with pytest.raises(DataError, match="leads out of it"):
        fetch_remote_bundle("s3://bundles/odd", tmp_path / "bundle")
    assert not (tmp_path / "outside").exists()


def test_the_manifest_of_a_ray_job_is_one(bundle_folder):
    manifest = yaml.safe_load((PROJECT / "service/deploy/rayjob.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayJob")
    spec = manifest["spec"]["rayClusterSpec"]
    pins = (PROJECT / "constraints.txt").read_text().splitlines()
    pinned = next(line for line in pins if line.startswith("ray=="))
    assert spec["rayVersion"] == pinned.removeprefix("ray==")
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
    words = manifest["spec"]["entrypoint"].split()
    assert words[:2] == ["lucida", "explain"]
    assert "--on" in words
