"""Jobs whose disk is full, or whose object store is slow, refuses or is away: nothing lost, nothing twice."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pyarrow.parquet as pq
import pytest

from models.bundle import load_bundle
from models.explainer import Explainer
from pipelines.batch import store as stores
from pipelines.batch.job import plan_job
from pipelines.batch.local import run_local
from pipelines.batch.sinks import read_rows
from tests.support.object_store import faulty_s3
from tests.support.serving import PROJECT

pytestmark = pytest.mark.soak
COUNT = 288


@pytest.fixture(scope="module")
def loaded(small_folder):
    return load_bundle(small_folder)


@pytest.fixture(scope="module")
def pictures(butterflies, tmp_path_factory):
    source = tmp_path_factory.mktemp("failing") / "pictures"
    source.mkdir()
    files = sorted((butterflies / "val").rglob("*.jpg"))
    for number in range(COUNT):
        os.link(files[number % len(files)], source / f"{number:03d}.jpg")
    return source


@pytest.fixture(scope="module")
def undisturbed(pictures, loaded, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    run_local(plan_job(pictures, Explainer(loaded, threads=1)), loaded, out, processes=2)
    return rows_by_path(out)


@pytest.fixture
def s3(pictures):
    """A server that holds the pictures."""
    with faulty_s3("failing") as (client, server):
        for path in pictures.iterdir():
            client.upload_file(str(path), "failing", f"in/{path.name}")
        yield client, server
        server.refuse = lambda request: False
        for item in client.list_objects_v2(Bucket="failing")["Contents"]:
            client.delete_object(Bucket="failing", Key=item["Key"])
        client.delete_bucket(Bucket="failing")


@pytest.fixture(autouse=True)
def soon(monkeypatch):
    """Stores wait less before they are asked again."""
    monkeypatch.setattr(stores, "_FIRST_WAIT_S", 0.05)


def rows_by_path(out):
    return sorted(read_rows(out), key=lambda row: row["path"])


def written_files(client):
    listed = client.list_objects_v2(Bucket="failing", Prefix="out/")
    return [item["Key"] for item in listed.get("Contents", [])]


def command(source, out, small_folder):
    words = ["explain", str(source), "--out", str(out), "--bundle", str(small_folder)]
    return [sys.executable, "-m", "pipelines.cli.app", *words, "--engine", "eager", "--processes", "2"]


def wait_until(condition, process):
    deadline = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_throttled_a_job_comes_to_the_same(s3, loaded, undisturbed):
    _, server = s3
    numbers = iter(range(1_000_000))
    server.refuse = lambda request: next(numbers) % 8 == 0
    job = plan_job("s3://failing/in", Explainer(loaded, threads=1))
    done = run_local(job, loaded, "s3://failing/out", processes=2)
    assert server.refused > 30
    assert (done.pictures, done.errors) == (COUNT, 0)
    server.refuse = lambda request: False
    assert rows_by_path("s3://failing/out") == undisturbed


def test_a_picture_that_the_store_never_gives_is_a_row(s3, loaded, undisturbed):
    _, server = s3
    job = plan_job("s3://failing/in", Explainer(loaded, threads=1))
    server.refuse = lambda request: request["PATH_INFO"].endswith("/in/017.jpg")
    done = run_local(job, loaded, "s3://failing/out")
    assert (done.pictures, done.errors) == (COUNT, 1)
    (failed,) = (row for row in rows_by_path("s3://failing/out") if row["status"] == "error")
    assert failed["path"] == "017.jpg"
    assert "s3://failing/in" in failed["error"]


@pytest.mark.parametrize("folder", ["in", "out"])
def test_a_store_that_goes_away_stops_the_job_which_then_goes_on(
    s3, loaded, small_folder, undisturbed, folder
):
    client, server = s3
    process = subprocess.Popen(
        command("s3://failing/in", "s3://failing/out", small_folder), cwd=PROJECT, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    written = threading.Event()

    def refuse(request):
        if written.is_set() and f"/failing/{folder}" in request["PATH_INFO"]:
            return True
        # Arrow's last request for a file, which makes it visible.
        ended = request["REQUEST_METHOD"] == "POST" and "uploadId" in request["QUERY_STRING"]
        if ended and request["PATH_INFO"].endswith("/out/rows/part-00000.parquet"):
            written.set()
        return False

    # From the very request on: a job on a fast machine would be done before a look at the store says so.
    server.refuse = refuse
    printed, _ = process.communicate(timeout=300)
    assert process.returncode == 1, printed
    assert "s3://failing" in re.sub(r"\s+", "", printed)
    assert "Traceback" not in printed
    server.refuse = lambda request: False
    assert "out/_SUCCESS" not in written_files(client)
    # The owner is gone, and could not take its note away.
    done = run_local(
        plan_job("s3://failing/in", Explainer(loaded, threads=1)), loaded, "s3://failing/out", processes=2
    )
    assert done.resumed >= 64
    assert (done.pictures, done.errors) == (COUNT, 0)
    assert rows_by_path("s3://failing/out") == undisturbed


def test_a_full_disk_ends_the_job_with_a_sentence_and_it_goes_on_when_there_is_room(
    pictures, small_folder, undisturbed, small_disk
):
    out, ballast = small_disk / "out", small_disk / "ballast"
    words = command(pictures, out, small_folder)
    process = subprocess.Popen(
        words, cwd=PROJECT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    wait_until(lambda: list(out.glob("rows/*.parquet")), process)
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 14)):
            pass
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == 1, printed
    assert "No space left on device" in re.sub(r"\s+", " ", printed)
    assert "Traceback" not in printed
    assert not (out / "_SUCCESS").exists()
    assert not list(out.rglob(".*.part"))
    for path in out.glob("rows/*.parquet"):
        assert pq.read_table(path).num_rows == 64
    ballast.unlink()
    again = subprocess.run(words, cwd=PROJECT, capture_output=True, text=True, timeout=200, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "of them done before" in again.stdout
    assert rows_by_path(out) == undisturbed


def test_ranges_that_the_store_refuses_are_asked_for_again(s3):
    client, server = s3
    data = os.urandom(1_500_000)
    client.put_object(Bucket="failing", Key="out/large", Body=data)
    with stores.open_store("s3://failing/out").open("large") as file:
        for place, count in ((0, 10), (700_000, 400_000), (1_499_000, 5_000), (5, 300_000)):
            numbers = iter(range(1_000_000))
            # More than Arrow itself tries.
            server.refuse = lambda request, numbers=numbers: next(numbers) < 5
            file.seek(place)
            assert file.read(count) == data[place : place + count]
    assert server.refused >= 15
