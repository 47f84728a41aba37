"""Jobs on a cluster of two Ray nodes without a shared disk: one that is lost, and a job that is submitted."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import psutil
import pyarrow.parquet as pq
import pytest

from models.bundle import load_bundle
from models.explainer import Explainer
from pipelines.batch.job import plan_job
from pipelines.batch.local import run_local
from pipelines.errors import DataError
from tests.support.object_store import running_s3
from tests.support.serving import PROJECT

KILLS = int(os.environ.get("LUCIDA_KILLS", "2"))
"""Of each kind; more of them for an hour that is left."""

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="needs Ray: pip install 'camera-lucida[ray]'")
pytestmark = pytest.mark.soak
COUNT = 240


@pytest.fixture
def store(butterflies, monkeypatch):
    """An S3 server with pictures."""
    with running_s3("cluster") as client:
        files = sorted((butterflies / "val").rglob("*.jpg"))
        for number in range(COUNT):
            client.upload_file(str(files[number % len(files)]), "cluster", f"in/{number:03d}.jpg")
        yield client


@pytest.fixture
def cluster(store):
    """Two nodes, each of a core and with processes of its own."""
    both = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    second = both.add_node(num_cpus=1)
    yield both, second
    both.shutdown()


def rows_at(client, prefix):
    keys = [item["Key"] for item in client.list_objects_v2(Bucket="cluster", Prefix=prefix)["Contents"]]
    rows = []
    for key in keys:
        if key.endswith(".parquet"):
            data = client.get_object(Bucket="cluster", Key=key)["Body"].read()
            rows += pq.read_table(io.BytesIO(data)).to_pylist()
    return sorted(rows, key=lambda row: row["path"]), keys


def test_a_node_that_is_lost_in_the_middle_costs_nothing(store, cluster, small_folder, tmp_path):
    from pipelines.batch.ray import run_on_ray

    both, second = cluster
    loaded = load_bundle(small_folder)
    job = plan_job("s3://cluster/in", Explainer(loaded))
    lost = threading.Event()

    def watch(what, done, total):
        if done >= 64 and not lost.is_set():
            lost.set()
            both.remove_node(second, allow_graceful=False)

    done = run_on_ray(job, loaded, "s3://cluster/out", address=both.address, progress=watch)
    assert lost.is_set()
    assert (done.pictures, done.errors) == (COUNT, 0)
    rows, keys = rows_at(store, "out/")
    assert set(Counter(row["path"] for row in rows).values()) == {1}
    assert "out/_SUCCESS" in keys
    alone = run_local(job, loaded, tmp_path / "alone", processes=2)
    files = sorted((alone.out / "rows").iterdir())
    here = sorted((row for path in files for row in pq.read_table(path).to_pylist()), key=lambda r: r["path"])
    assert rows == here


def test_a_job_that_is_submitted_runs_on_the_cluster(store, cluster, small_folder, tmp_path):
    both, _ = cluster
    words = ["explain", "s3://cluster/in", "--out", "s3://cluster/submitted", "--bundle", str(small_folder)]
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.app", *words, "--on", "ray", "--engine", "eager"],
        cwd=PROJECT, env=os.environ | {"RAY_ADDRESS": both.address}, capture_output=True, text=True,
        timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert f"{COUNT} pictures, 0 could not be used" in done.stdout, time.monotonic() - began
    rows, keys = rows_at(store, "submitted/")
    assert len(rows) == COUNT
    assert "submitted/index.html" in keys


def test_what_stops_a_worker_is_told_as_on_one_machine(butterflies, small_folder, tmp_path, monkeypatch):
    from pipelines.batch import ray as ray_jobs

    loaded = load_bundle(small_folder)
    files = ray_jobs._bundle_files(loaded)
    monkeypatch.setattr(ray_jobs, "_bundle_files", lambda bundle: files | {"weights.safetensors": b"altered"})
    job = plan_job(butterflies / "val", Explainer(loaded))
    with pytest.raises(DataError, match="was altered or cut off"):
        ray_jobs.run_on_ray(job, loaded, tmp_path / "out")


def test_drivers_and_workers_killed_at_random_moments_lose_nothing(butterflies, small_folder, tmp_path):
    """As many kills of the command as of one worker's process, on a cluster that the command starts."""
    source, out, draw = tmp_path / "pictures", tmp_path / "out", random.Random(0)
    source.mkdir()
    files = sorted((butterflies / "val").rglob("*.jpg"))
    for number in range(160):
        os.link(files[number % len(files)], source / f"{number:03d}.jpg")
    loaded = load_bundle(small_folder)
    run_local(plan_job(source, Explainer(loaded)), loaded, tmp_path / "alone", processes=2)
    words = ["explain", str(source), "--out", str(out), "--bundle", str(small_folder), "--engine", "eager"]
    kills: Counter[str] = Counter()
    while sum(kills.values()) < 2 * KILLS:
        process = subprocess.Popen(
            [sys.executable, "-m", "pipelines.cli.app", *words, "--on", "ray"], cwd=PROJECT,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip
        wait_for_workers(process)
        time.sleep(draw.uniform(0, 3))
        workers = [child for child in writers() if child.is_running()]
        if kills["worker"] < KILLS and workers:
            draw.choice(workers).kill()
            kills["worker"] += 1
            assert process.wait(240) == 0, process.stdout.read()
        elif process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills["driver"] += 1
        process.communicate()
        if (out / "_SUCCESS").exists():
            assert rows_in(out) == rows_in(tmp_path / "alone")
            shutil.rmtree(out)
    assert kills == {"worker": KILLS, "driver": KILLS}
    last = subprocess.run(
        [sys.executable, "-m", "pipelines.cli.app", *words, "--on", "ray"], cwd=PROJECT, capture_output=True,
        text=True, timeout=240, check=False,
    )  # fmt: skip
    assert last.returncode == 0, last.stdout + last.stderr
    assert rows_in(out) == rows_in(tmp_path / "alone")
    assert not list(out.rglob(".*.part"))


def rows_in(out):
    return sorted(pq.read_table(out / "rows").to_pylist(), key=lambda row: row["path"])


def writers():
    """Return the processes of Ray's actors that write parts."""
    return [
        child
        for child in psutil.process_iter(["cmdline"])
        if any("PartWriter" in word for word in child.info["cmdline"] or ())
    ]


def wait_for_workers(process):
    deadline = time.monotonic() + 120
    while not writers() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.1)
