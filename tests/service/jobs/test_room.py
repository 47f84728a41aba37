"""A full disk and a folder at its limit: refused, ended, freed; nothing stuck, nothing left behind."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.jobs.folder_store import FolderJobStore
from service.jobs.store import is_no_room


def submit(service, verb: str, *pictures: bytes, **options: str) -> httpx.Response:
    files = [("image", ("p.jpg", data)) for data in pictures]
    return httpx.post(f"{service.url}/jobs/{verb}", files=files, data=options, trust_env=False, timeout=30)


def state(service, job: dict) -> dict:
    return service.get(f"/jobs/{job['id']}").json()


def wait_for(reached: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def fill(path: Path) -> None:
    """Write until the file system is full."""
    with path.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        for size in (1 << 20, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while True:
                    file.write(b"x" * size)


@pytest.mark.soak
def test_a_full_disk_refuses_ends_and_frees_and_goes_on_when_there_is_room(
    start, bundle_folder, bee, small_disk
):
    """The folder's file system is filled while a job runs, and emptied again."""
    own = start(bundle_folder, jobs=small_disk / "jobs", max_job_pictures="2000")
    running = submit(own, "explain", *[bee] * 50, method="occlusion").json()
    wait_for(lambda: state(own, running)["done"] >= 1)
    ballast = small_disk / "ballast"
    fill(ballast)
    refused = submit(own, "predict", *[bee] * 20)
    assert (refused.status_code, refused.json()["kind"]) == (507, "jobs_full")
    assert "Retry-After" in refused.headers
    assert not [path for path in (small_disk / "jobs").glob(".*") if path.is_dir()], "nothing is left of it"
    wait_for(lambda: state(own, running)["state"] == "failed")
    assert "no room" in state(own, running)["error"]
    kept = own.get(f"/jobs/{running['id']}/result").json()["answers"]
    assert len(kept) >= 1
    assert own.get("/livez").status_code == own.get("/metrics").status_code == 200
    fill(ballast)
    lines = own.log.read_text()
    assert lines.count("its folder is full") == 1, "one line, and not one each half second"
    assert "Traceback" not in lines
    gone = httpx.delete(f"{own.url}/jobs/{running['id']}", trust_env=False)
    assert gone.status_code == 200
    assert own.get(f"/jobs/{running['id']}").status_code == 404
    ballast.unlink()
    again = submit(own, "predict", *[bee] * 20).json()
    wait_for(lambda: state(own, again)["state"] == "done")


def test_a_job_that_waits_can_be_cancelled_on_a_full_disk(bee, small_disk):
    store = FolderJobStore(small_disk / "jobs", most_bytes=10**9)
    store.folder.mkdir()
    job = store.create("predict", {}, [bee], None)
    fill(small_disk / "ballast")
    store.cancel(job)
    assert store.get(job.id) is None or store.status(job).state == "cancelled"


def test_a_status_is_kept_on_a_full_disk(bee, small_disk):
    store = FolderJobStore(small_disk / "jobs", most_bytes=10**9)
    store.folder.mkdir()
    job = store.create("predict", {}, [bee], None)
    fill(small_disk / "ballast")
    store.update(job, state="failed", error="There is no room.")
    assert store.status(job).error == "There is no room."
    store.update(job, state="failed", error=None)
    assert store.status(job).error is None


def test_the_folder_keeps_within_its_bytes_and_the_oldest_that_ended_go(tmp_path):
    store = FolderJobStore(tmp_path / "jobs", most_bytes=100_000)
    store.folder.mkdir()
    ended = []
    for n in range(3):
        ended.append(store.create("predict", {}, [b"x" * 20_000], None))
        store.add_answer(ended[n], 0, b"y" * 20_000)
    for job in ended:
        store.finish(job, state="done")
    waiting = store.create("predict", {}, [b"x" * 20_000], None)
    store.make_room(30_000)
    assert [job.id for job in store.jobs()] == [ended[1].id, ended[2].id, waiting.id]
    assert store.size() + 30_000 <= 100_000
    with pytest.raises(OSError, match="bytes for jobs are in use") as full:
        store.make_room(90_000)
    assert is_no_room(full.value)
    assert [job.id for job in store.jobs()] == [waiting.id], "what waits or runs stays"


def test_the_folder_is_measured_while_jobs_come_and_go(tmp_path):
    store = FolderJobStore(tmp_path / "jobs", most_bytes=10**9)
    store.folder.mkdir()
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            store.remove(store.create("predict", {}, [b"x" * 100] * 5, None))

    threads = [threading.Thread(target=come_and_go) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        sizes = [store.size() for _ in range(300)]
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert max(sizes) > 0


@pytest.mark.soak
def test_a_job_beyond_the_bytes_of_the_folder_is_refused(start, bundle_folder, bee):
    own = start(bundle_folder, max_jobs_bytes=str(len(bee) * 5))
    assert submit(own, "predict", *[bee] * 6).json()["kind"] == "jobs_full"
    done = submit(own, "predict", bee).json()
    wait_for(lambda: state(own, done)["state"] == "done")
