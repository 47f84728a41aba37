"""Jobs in worker processes: the rows of one process, whatever dies meanwhile, and one job at a time."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import duckdb
import polars
import psutil
import pyarrow.parquet as pq
import pytest

from models.bundle import load_bundle
from models.explainer import Explainer
from pipelines.batch import pool as pools
from pipelines.batch.claims import claimed
from pipelines.batch.job import plan_job
from pipelines.batch.local import run_local
from pipelines.batch.pool import WorkerPlan, WorkerPool
from pipelines.batch.sources import open_source
from pipelines.batch.store import LocalStore, open_store
from pipelines.errors import DataError
from tests.support.deadly_source import DeadlySource
from tests.support.object_store import running_s3
from tests.support.serving import PROJECT

KILLS = int(os.environ.get("LUCIDA_KILLS", "3"))
"""Of each kind; more of them for an hour that is left."""


@pytest.fixture(scope="module")
def loaded(small_folder):
    return load_bundle(small_folder)


@pytest.fixture(scope="module")
def pictures(butterflies, tmp_path_factory) -> Path:
    """Three hundred pictures, one of them broken."""
    source = tmp_path_factory.mktemp("many") / "pictures"
    source.mkdir()
    files = sorted((butterflies / "val").rglob("*.jpg"))
    for number in range(299):
        os.link(files[number % len(files)], source / f"{number:03d}.jpg")
    (source / "broken.jpg").write_bytes(b"\xff\xd8\xff no")
    return source


@pytest.fixture(scope="module")
def undisturbed(pictures, loaded, tmp_path_factory) -> Path:
    """The same by one process."""
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_local(plan_job(pictures, Explainer(loaded)), loaded, out, processes=1)
    return out


def rows_of(out: Path) -> list[dict]:
    return sorted(pq.read_table(out / "rows").to_pylist(), key=lambda row: row["path"])


def same_rows(one: list[dict], other: list[dict]) -> bool:
    """Whether rows are equal; maps to rounding, for one process may take two threads."""
    assert [row["path"] for row in one] == [row["path"] for row in other]
    for row, beside in zip(one, other, strict=True):
        assert (row["prediction"], row["status"], row["error"]) == (
            beside["prediction"], beside["status"], beside["error"],
        )  # fmt: skip
        if row["grid"] is not None:
            assert row["grid"] == pytest.approx(beside["grid"], abs=1e-5)
    return True


def test_two_processes_write_the_rows_of_one_and_other_tools_read_them(
    pictures, loaded, undisturbed, tmp_path
):
    told = []
    job = plan_job(pictures, Explainer(loaded))
    done = run_local(
        job, loaded, tmp_path / "out", processes=2, progress=lambda what, n, total: told.append((n, total))
    )
    assert (done.pictures, done.errors) == (300, 1)
    assert told[-1] == (300, 300)
    assert same_rows(rows_of(done.out), rows_of(undisturbed))
    assert len(list((done.out / "overlays").iterdir())) == 299
    files = f"{done.out}/rows/*.parquet"
    assert polars.read_parquet(files).height == 300
    counted = duckdb.sql(
        f"select count(*), count(distinct path) from '{files}' where status = 'ok'"
    ).fetchall()
    assert counted == [(299, 299)]
    metadata = pq.read_schema(next((done.out / "rows").iterdir())).metadata
    assert json.loads(metadata[b"camera_lucida.job"])["method"] == "grad_cam"
    assert sorted(path.name for path in done.out.iterdir()) == [
        "_SUCCESS", "index.html", "job.json", "overlays", "rows",
    ]  # fmt: skip


def test_a_picture_that_ends_or_holds_the_process_costs_itself_alone(
    pictures, loaded, undisturbed, tmp_path, monkeypatch
):
    deeds = {"010.jpg": "kill", "011.jpg": "exit", "130.jpg": "hang"}
    source = DeadlySource(open_source(pictures), deeds)
    job = plan_job(source, Explainer(loaded))
    monkeypatch.setattr(pools, "HANG_SECONDS", 8.0)
    monkeypatch.setattr(
        "pipelines.batch.local.WorkerPool", lambda plan, count: WorkerPool(plan, count, hang_seconds=8.0)
    )
    done = run_local(job, loaded, tmp_path / "out", processes=2)
    assert (done.pictures, done.errors) == (300, 4)
    rows = {row["path"]: row for row in rows_of(done.out)}
    assert "ended with signal 9" in rows["010.jpg"]["error"]
    assert "ended with exit code 7" in rows["011.jpg"]["error"]
    assert "said nothing for 8 s" in rows["130.jpg"]["error"]
    others = [row for row in rows_of(done.out) if row["path"] not in deeds]
    assert same_rows(others, [row for row in rows_of(undisturbed) if row["path"] not in deeds])


def start(pictures, small_folder, out, *more):
    words = ["explain", str(pictures), "--out", str(out), "--bundle", str(small_folder), "--processes", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli.app", *words, "--engine", "eager", *more], cwd=PROJECT,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_a_part(out: Path, process, count: int) -> None:
    deadline = time.monotonic() + 120
    while len(list(out.glob("rows/*.parquet"))) < count and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def check_outcome(out: Path, undisturbed: Path) -> None:
    assert same_rows(rows_of(out), rows_of(undisturbed))
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
    assert len(list((out / "overlays").iterdir())) == 299


@pytest.mark.soak
def test_killed_at_random_moments_a_job_comes_to_the_same(pictures, small_folder, undisturbed, tmp_path):
    """As many kills of the command with its workers as of one worker alone."""
    draw, out = random.Random(0), tmp_path / "out"
    kills = 0
    while kills < KILLS:
        process = start(pictures, small_folder, out)
        time.sleep(draw.uniform(3, 9))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.wait()
        if (out / "_SUCCESS").exists():
            check_outcome(out, undisturbed)
            shutil.rmtree(out)
    workers = 0
    while workers < KILLS:
        process = start(pictures, small_folder, out)
        while process.poll() is None and workers < KILLS:
            time.sleep(0.1)
            with suppress(psutil.NoSuchProcess):
                # The copies of the process that has done the imports.
                children = psutil.Process(process.pid).children()
                if copies := [copy for child in children for copy in child.children()]:
                    time.sleep(draw.uniform(0, 2))
                    draw.choice(copies).kill()
                    workers += 1
        assert process.wait(200) == 0, process.stdout.read()
        if workers < KILLS:
            check_outcome(out, undisturbed)
            shutil.rmtree(out)
    check_outcome(out, undisturbed)


@pytest.mark.soak
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_it_ends_soon_leaves_nothing_and_goes_on(
    pictures, small_folder, undisturbed, tmp_path, number, code
):
    out = tmp_path / "out"
    process = start(pictures, small_folder, out)
    wait_for_a_part(out, process, 1)
    began = time.monotonic()
    os.killpg(process.pid, number)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode == code
    assert time.monotonic() - began < 10
    assert "Traceback" not in printed
    assert not [path for path in out.rglob("*") if path.name.endswith(".part")]
    process = start(pictures, small_folder, out)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    assert "of them done before" in printed
    check_outcome(out, undisturbed)


def test_two_jobs_on_one_folder_the_second_is_told_and_a_dead_owner_is_forgotten(tmp_path):
    store = LocalStore(tmp_path / "out")
    with claimed(store), pytest.raises(DataError, match="is being written by process"), claimed(store):
        pass
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / ".lock").write_text("process 1 on elsewhere")
    with claimed(store):
        pass
    assert list((tmp_path / "out").iterdir()) == []


def test_results_in_an_object_store_are_those_of_a_folder(pictures, loaded, undisturbed, tmp_path):
    with running_s3("results") as client:
        for path in pictures.iterdir():
            client.upload_file(str(path), "results", f"in/{path.name}")
        out = "s3://results/out"
        job = plan_job("s3://results/in", Explainer(loaded))
        done = run_local(job, loaded, out, processes=2)
        assert (done.pictures, done.errors, done.page) == (300, 1, f"{out}/index.html")
        again = run_local(job, loaded, out, processes=2)
        assert again.resumed == 300
        keys = {item["Key"] for item in client.list_objects_v2(Bucket="results", Prefix="out/")["Contents"]}
        assert {"out/_SUCCESS", "out/job.json", "out/index.html"} < keys
        assert not [key for key in keys if "owner" in key]
        (tmp_path / "rows").mkdir()
        for key in (key for key in keys if key.startswith("out/rows/")):
            client.download_file("results", key, str(tmp_path / key.removeprefix("out/")))
        assert same_rows(rows_of(tmp_path), rows_of(undisturbed))
        store = open_store(out)
        note = {"token": "other", "owner": "process 1 on elsewhere", "at": time.time()}
        store.write(".owner.json", json.dumps(note).encode())
        with pytest.raises(DataError, match="process 1 on elsewhere"):
            run_local(job, loaded, out)
        store.write(".owner.json", json.dumps({**note, "at": time.time() - 300}).encode())
        assert run_local(job, loaded, out).resumed == 300


def test_an_estimate_counts_all_and_writes_nothing(pictures, small_folder, at_once, in_tmp):
    done = at_once("explain", str(pictures), "--out", "out", "--bundle", str(small_folder), "--estimate")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "300 pictures: about" in done.stdout
    assert "By 64 of them, of which 1 could not be used" in done.stdout
    assert not (in_tmp / "out").exists()


def test_a_plan_can_be_sent(pictures, loaded):
    import pickle

    job = plan_job(pictures, Explainer(loaded))
    assert pickle.loads(pickle.dumps(WorkerPlan(loaded.folder, job, "out"))).job.key == job.key
