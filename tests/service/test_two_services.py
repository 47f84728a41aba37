"""Services on one machine with nothing set but their bundles: none answers, lists or counts for another."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import tempfile
import time
from pathlib import Path

import httpx
import pytest

from service.settings import Settings, state_home
from tests.support.serving import BIN, PROJECT, Served, free_port, start_service


def environment(home: Path, bundle: Path, **more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("LUCIDA_", "XDG_"))}
    return own | {
        "HOME": str(home), "BENTOML_HOME": str(home / "bentoml"), "LUCIDA_BUNDLE": str(bundle),
        "LUCIDA_WORKERS": "1", "BENTOML_DO_NOT_TRACK": "true", **more,
    }  # fmt: skip


def requests_counted(served: Served) -> float:
    lines = re.findall(
        r'lucida_requests_total\{route="/predict",status="200"\} (\S+)', served.get("/metrics").text
    )
    return sum(map(float, lines))


@pytest.fixture(scope="module")
def pair(bundle_folder, second, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    first = start_service(PROJECT, home / "first.log", environment(home, bundle_folder))
    first.wait_ready()
    # BentoML empties the folder of figures that it gives to all services when another starts.
    other = start_service(PROJECT, home / "other.log", environment(home, second))
    other.wait_ready()
    yield first, other, home
    first.stop()
    other.stop()


@pytest.mark.soak
def test_jobs_are_worked_on_and_listed_by_the_service_that_took_them(pair, bee):
    for served in pair[:2]:
        model = served.ask("/predict", bee).json()["provenance"]["model"]
        files = {"image": ("b.jpg", bee)}
        job = httpx.post(f"{served.url}/jobs/predict", files=files, trust_env=False).json()
        while served.get(f"/jobs/{job['id']}").json()["state"] in {"queued", "running"}:
            time.sleep(0.1)
        (answer,) = served.get(f"/jobs/{job['id']}/result").json()["answers"]
        assert answer["provenance"]["model"] == model
    lists = [{job["id"] for job in served.get("/jobs").json()["jobs"]} for served in pair[:2]]
    assert [len(ids) for ids in lists] == [1, 1]
    assert lists[0] != lists[1]


def test_each_counts_its_own_requests(pair, bee):
    first, other, _ = pair
    before = [requests_counted(first), requests_counted(other)]
    for _ in range(3):
        first.ask("/predict", bee)
    assert [requests_counted(first), requests_counted(other)] == [before[0] + 3, before[1]]
    served = [
        set(re.findall(r'lucida_model\{.*?model="(.*?)"', one.get("/metrics").text)) for one in pair[:2]
    ]
    assert len(served[0]) == len(served[1]) == 1
    assert served[0] != served[1]


def test_a_folder_that_another_service_uses_is_refused_in_a_sentence(pair, bundle_folder):
    first, _, home = pair
    (folder,) = (
        path for path in (home / ".local/state/camera-lucida/jobs").iterdir() if first.url[-5:] in path.name
    )
    words = [BIN / "bentoml", "serve", ".", "--port", str(free_port())]
    done = subprocess.run(
        words, cwd=PROJECT, env=environment(home, bundle_folder, LUCIDA_JOBS=str(folder)),
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert re.search(rf"Another service \(process \d+\) keeps its jobs in {folder}.*LUCIDA_JOBS", said)
    assert "Traceback" not in said
    assert first.get("/jobs").status_code == 200


@pytest.mark.soak
def test_a_folder_of_a_killed_service_is_taken_over(bundle_folder, tmp_path):
    settings = environment(tmp_path, bundle_folder, LUCIDA_JOBS=str(tmp_path / "jobs"))
    killed = start_service(PROJECT, tmp_path / "log", settings)
    killed.wait_ready()
    for process in [*killed.workers(), killed.process]:
        process.kill()
    killed.process.wait()
    after = start_service(PROJECT, tmp_path / "log", settings)
    after.wait_ready()
    assert requests_counted(after) == 0
    after.stop()


@pytest.mark.soak
def test_without_a_folder_to_write_to_it_says_so_or_serves_without_jobs(bundle_folder, tmp_path):
    settings = environment(tmp_path, bundle_folder, XDG_STATE_HOME="/proc/none")
    words = [BIN / "bentoml", "serve", ".", "--port", str(free_port())]
    done = subprocess.run(
        words, cwd=PROJECT, env=settings, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stdout + done.stderr
    assert re.search("cannot start: The folder /proc/none/.* cannot be written.*LUCIDA_JOBS", said)
    assert "Traceback" not in said
    served = start_service(
        PROJECT, tmp_path / "log", settings | {"LUCIDA_MAX_JOBS": "0", "LUCIDA_WORKERS": "2"}
    )
    served.wait_ready()
    assert served.get("/metrics").status_code == 200
    served.stop()
    assert "Traceback" not in served.log.read_text()


def test_a_user_without_a_home_has_a_folder_all_the_same(monkeypatch):
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    for name in ("HOME", "XDG_STATE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    assert str(state_home()).startswith(tempfile.gettempdir())
    assert Settings().jobs.is_relative_to(state_home())
