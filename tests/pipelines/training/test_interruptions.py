"""Training that is killed, stopped or cut off, in real processes, against the same run left alone."""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import mlflow
import pytest
from safetensors import safe_open

from tests.support.forked import Command
from tests.support.postgres import running_postgres
from tests.support.serving import free_port

CONFIG = """
batch_size = 8
views = 2
sanity = "none"
[[phases]]
name = "head"
train_from = "head"
epochs = 60
rate = 0.004
[[phases]]
name = "top"
train_from = "top"
epochs = 8
rate = 0.001
ema_decay = 0.9
mixup = 0.2
"""


@dataclass
class Place:
    """A working folder with its own store, run folders and training command."""

    command: type[Command]
    folder: Path
    data: Path
    environment: dict[str, str] = field(default_factory=dict)

    def start(self, *arguments: str) -> Command:
        words = ["train", *arguments]
        if "--resume" not in arguments:
            words += ["--data", str(self.data), "--config", str(self.folder / "c.toml"), "--name", "wings"]
        return self.run(*words)

    def run(self, *words: str) -> Command:
        store = {"MLFLOW_TRACKING_URI": f"sqlite:///{self.folder}/mlflow.db"}
        environment = {**os.environ, **store, **self.environment}
        return self.command(words, self.folder, self.folder / "log.txt", environment)

    def finish(self, *arguments: str) -> None:
        process = self.start(*arguments)
        assert process.wait(300) == 0, self.log()

    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    def left(self) -> list[Path]:
        return sorted((self.folder / "runs").glob("*"))

    def plan(self) -> dict:
        (folder,) = self.left()
        return json.loads((folder / "run.json").read_text())

    def told(self, sql: str) -> list[tuple]:
        with sqlite3.connect(self.folder / "mlflow.db") as store:
            return store.execute(sql).fetchall()

    def story(self) -> dict:
        """What must be the same whatever happened on the way."""
        ((model,),) = self.told("select source from model_versions")
        model = model.removeprefix("models:/")
        (weights,) = self.folder.glob(f"mlruns/*/models/{model}/artifacts/**/weights.safetensors")
        metrics = self.told(
            "select runs.name, key, step, value from metrics join runs using (run_uuid) "
            "where key not like 'system/%' order by 1, 2, 3"
        )
        assert len({row[:3] for row in metrics}) == len(metrics), "no doubles"
        # A run's name ends with the time at which it began.
        metrics = sorted((re.sub(" seed .*", "", row[0]), *row[1:]) for row in metrics)
        return {
            "weights": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "metrics": metrics,
            "states": sorted(
                (re.sub(" seed .*", "", name), status)
                for name, status in self.told("select name, status from runs")
            ),
            "versions": self.told("select name, version, current_stage from model_versions"),
            "runs left": self.left(),
        }


@pytest.fixture(scope="module")
def place(butterflies, empty_store, tmp_path_factory) -> Callable[..., Place]:
    def make(name: str, **environment: str) -> Place:
        folder = tmp_path_factory.mktemp(name)
        (folder / "c.toml").write_text(CONFIG)
        if name != "alone":
            shutil.copy(empty_store, folder / "mlflow.db")
        return Place(Command, folder, butterflies, environment)

    return make


@pytest.fixture(scope="module")
def undisturbed(place) -> dict:
    alone = place("alone")
    alone.finish()
    return alone.story()


def wait_for(condition: Callable[[], object], process: Command, place: Place) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, f"ended before it could be disturbed:\n{place.log()[-3000:]}"
        assert time.monotonic() < until, place.log()[-3000:]
        time.sleep(0.002)


def kill(process: Command) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def epoch_of(place: Place) -> tuple[int, int]:
    """(phases done, epoch) of the last checkpoint."""
    for path in place.left():
        try:
            with safe_open(path / "checkpoint.safetensors", framework="pt") as file:
                facts = json.loads(file.metadata()["lucida"])
            return len(facts["done"]), facts["epochs"][-1]["number"]
        except OSError:
            pass
    return (0, -1)


MOMENTS = {
    "in the top blocks": lambda place: epoch_of(place) >= (1, 3),
    "in the review": lambda place: list(place.folder.glob("mlruns/**/review.html")),
    "in the registration": lambda place: list(place.folder.glob("mlruns/**/bundle")),
}


@pytest.mark.soak
@pytest.mark.parametrize("moment", ["in the top blocks", "in the review", "in the registration"])
def test_killed_and_resumed_it_comes_to_the_same(place, undisturbed, moment):
    disturbed = place("killed")
    process = disturbed.start()
    wait_for(lambda: MOMENTS[moment](disturbed), process, disturbed)
    kill(process)
    before = epoch_of(disturbed)
    run_id = disturbed.plan()["run_id"]
    disturbed.finish("--resume", run_id)
    assert disturbed.story() == undisturbed
    print(f"killed {moment}, at (phases done, epoch) {before}")


@pytest.mark.soak
def test_killed_again_and_again(place, undisturbed):
    disturbed = place("often")
    rng = random.Random(7)
    process = disturbed.start()
    run_id = ""
    for _ in range(3):
        started = epoch_of(disturbed)
        wait_for(lambda started=started: epoch_of(disturbed) > started, process, disturbed)
        run_id = disturbed.plan()["run_id"]
        time.sleep(rng.uniform(0, 0.3))
        kill(process)
        reached = epoch_of(disturbed)
        assert reached > started, "each attempt gets further"
        process = disturbed.start("--resume", run_id)
    assert process.wait(300) == 0, disturbed.log()
    assert disturbed.story() == undisturbed


@pytest.mark.soak
def test_the_next_training_marks_a_killed_run_and_leaves_it_resumable(place, undisturbed):
    disturbed = place("swept")
    process = disturbed.start()
    wait_for(lambda: epoch_of(disturbed) >= (0, 1), process, disturbed)
    kill(process)
    run_id = disturbed.plan()["run_id"]
    assert ("RUNNING",) in disturbed.told("select status from runs")
    (disturbed.folder / "c.toml").write_text(
        CONFIG.replace("epochs = 60", "epochs = 1").replace("= 8\n", "= 9\n")
    )
    disturbed.finish("--seed", "5")
    states = disturbed.told("select status, count(*) from runs group by status order by 1")
    assert states == [("FINISHED", 3), ("KILLED", 3)]
    disturbed.finish("--resume", run_id[:8])
    assert disturbed.told("select distinct status from runs") == [("FINISHED",)]
    assert disturbed.left() == []


def stop_by(number: int, code: int, place: Callable[..., Place]) -> tuple[Place, str]:
    """A run that was stopped by a signal in its first phase, and its id."""
    stopped = place("stopped")
    process = stopped.start()
    wait_for(lambda: epoch_of(stopped) >= (0, 3), process, stopped)
    os.kill(process.pid, number)
    assert process.wait(60) == code, stopped.log()
    assert "Traceback" not in stopped.log()
    return stopped, stopped.plan()["run_id"]


@pytest.mark.soak
def test_ctrl_c_ends_cleanly_and_names_the_command_that_resumes(place):
    stopped, run_id = stop_by(signal.SIGINT, 130, place)
    assert f"lucida train --resume {run_id}" in re.sub(r"\s+", " ", stopped.log())
    rows = stopped.told("select name, status from runs")
    states = {re.sub(" seed .*", "", name): state for name, state in rows}
    assert states["wings efficientnet_lite0 default"] == states["1 head"] == "KILLED"
    assert states["2 top"] in ("KILLED", "SCHEDULED"), "it may not have begun"


@pytest.mark.soak
def test_a_stopped_run_resumes_to_the_same(place, undisturbed):
    stopped, run_id = stop_by(signal.SIGTERM, 143, place)
    stopped.finish("--resume", run_id)
    assert stopped.story() == undisturbed


def test_what_cannot_be_resumed_says_why(place, butterflies, tmp_path):
    disturbed = place("changed")
    disturbed.data = Path(shutil.copytree(butterflies, tmp_path / "copy"))
    process = disturbed.start()
    wait_for(lambda: epoch_of(disturbed) >= (0, 1), process, disturbed)
    run_id = disturbed.plan()["run_id"]
    # Held where it is, or it would be done before the second one has started.
    os.kill(process.pid, signal.SIGSTOP)
    second = disturbed.start("--resume", run_id)
    assert second.wait(60) == 1
    assert "is being trained by another process" in disturbed.log()
    kill(process)
    next((disturbed.data / "train").rglob("*.jpg")).unlink()
    assert disturbed.start("--resume", run_id).wait(60) == 1
    assert "have changed since the run" in disturbed.log()
    assert disturbed.start("--resume", "0" * 32).wait(60) == 1
    assert f"choose one of: {run_id}" in disturbed.log()


@pytest.mark.soak
def test_a_locked_database_costs_no_epoch(place, undisturbed):
    """Somebody holds the store's lock from the first epoch until training has long been over."""
    locked = place("locked")
    process = locked.start()
    wait_for(lambda: epoch_of(locked) >= (0, 1), process, locked)
    with sqlite3.connect(locked.folder / "mlflow.db", isolation_level=None, timeout=30) as store:
        store.execute("begin exclusive")
        wait_for(lambda: epoch_of(locked) >= (1, 8), process, locked)
        time.sleep(2)
        assert process.poll() is None
        store.execute("rollback")
    assert process.wait(300) == 0, locked.log()
    assert locked.story() == undisturbed
    assert "Traceback" not in locked.log()


@pytest.mark.soak
def test_a_full_disk_stops_with_a_clear_word_and_goes_on_when_there_is_room(place, undisturbed, small_disk):
    full = place("full", LUCIDA_RUNS=str(small_disk / "runs"))
    process = full.start()
    wait_for(lambda: list(small_disk.glob("runs/*/checkpoint.safetensors")), process, full)
    ballast = small_disk / "ballast"
    with suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(1 << 16)):
            pass
    try:
        assert process.wait(120) == 1, full.log()
    finally:
        process.kill()
    said = re.sub(r"\s+", " ", full.log())
    assert "No space left on device" in said
    assert "Traceback" not in said
    (folder,) = (small_disk / "runs").iterdir()
    run_id = json.loads((folder / "run.json").read_text())["run_id"]
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["lucida"])["epochs"], "the last good state is whole"
    ballast.unlink()
    full.finish("--resume", run_id)
    assert full.story() == undisturbed


# ---------------------------------------------------------------- a real server on a real Postgres


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """The URI of a Postgres of its own, or a skip that says what is missing."""
    with running_postgres() as uri:
        yield uri


@contextmanager
def tracking_server(backend: str, folder: Path, port: int) -> Iterator[str]:
    """``mlflow server`` on that database, artefacts in a folder."""
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port),
        "--workers", "1", "--backend-store-uri", backend,
        "--artifacts-destination", str(folder / "artifacts"),
    ]  # fmt: skip
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (folder / "server.log").open("a") as log:
        server = subprocess.Popen(
            command, cwd=folder, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 120
        while True:
            assert server.poll() is None, (folder / "server.log").read_text()[-3000:]
            assert time.monotonic() < until
            try:
                if httpx.get(f"{url}/health", timeout=2, trust_env=False).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.mark.soak
def test_a_server_on_postgres_that_goes_away_and_comes_back(place, undisturbed, postgres, tmp_path):
    """The server is killed in the head's first epochs and is back only after training has ended."""
    port = free_port()
    away = place("away", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}")
    with tracking_server(postgres, tmp_path, port):
        process = away.start()
        wait_for(lambda: epoch_of(away) >= (0, 1), process, away)
    wait_for(lambda: epoch_of(away) >= (1, 8), process, away)
    time.sleep(1)
    with tracking_server(postgres, tmp_path, port) as url:
        assert process.wait(300) == 0, away.log()
        assert "Traceback" not in away.log()
        client = mlflow.MlflowClient(url, url)
        experiment = client.get_experiment_by_name("camera-lucida")
        runs = client.search_runs([experiment.experiment_id])
        assert {run.info.status for run in runs} == {"FINISHED"}
        told = sorted(
            (re.sub(" seed .*", "", run.info.run_name), metric.key, metric.step, metric.value)
            for run in runs
            for key in run.data.metrics
            if not key.startswith("system/")
            for metric in client.get_metric_history(run.info.run_id, key)
        )
        expected = undisturbed["metrics"]
        assert [row[:3] for row in told] == [row[:3] for row in expected]
        assert [row[3] for row in told] == pytest.approx([row[3] for row in expected])
        (version,) = client.search_model_versions("name = 'wings'")
        commands = (
            ["promote", "wings"],
            ["review", "wings@champion", "--data", str(away.data)],
            ["compare", "wings@champion", "wings/1", "--data", str(away.data)],
        )
        for command in commands:
            assert away.run(*command).wait(120) == 0, away.log()
        assert client.get_model_version_by_alias("wings", "champion").version == version.version
        assert (away.folder / "review.html").stat().st_size > 10_000
        assert "0 were fixed and 0 broken" in (away.folder / "compare.html").read_text()
    assert list((tmp_path / "artifacts").rglob("weights.safetensors")), "artefacts lie in the folder"


def test_without_a_tracker_training_does_not_begin(place):
    nowhere = place("nowhere", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{free_port()}")
    assert nowhere.start().wait(120) == 1
    assert "No run can be opened in http://127.0.0.1" in re.sub(r"\s+", " ", nowhere.log())
    assert "Traceback" not in nowhere.log()
    # Whether a run was opened is not known; the folder stays for the next training to ask, and is nothing to
    # resume.
    assert not any((folder / "run.json").exists() for folder in nowhere.left())
