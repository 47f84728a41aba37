"""Jobs over REST on a real service: submitted, watched, fetched, cancelled, and not lost by any kill."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import time

import httpx
import pytest

from service.jobs.folder_store import FolderJobStore
from service.jobs.store import JobStatus
from service.jobs.supervisor import JobSupervisor
from service.settings import Settings


def submit(service, verb: str, *pictures: bytes, **options: str) -> httpx.Response:
    files = [("image", ("p.jpg", data)) for data in pictures]
    headers = {"X-API-Key": options.pop("key")} if "key" in options else {}
    return httpx.post(
        f"{service.url}/jobs/{verb}", files=files, data=options, headers=headers, trust_env=False, timeout=30
    )


def ended(service, name: str, seconds: float = 90) -> dict:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = service.get(f"/jobs/{name}").json()
        if found["state"] not in {"queued", "running"}:
            return found
        time.sleep(0.2)
    raise AssertionError(service.log.read_text()[-2000:])


def test_a_job_says_how_far_it_is_and_answers_as_the_route_does(service, bee):
    asked = {"top_k": "2", "method": "occlusion", "effort": "quick"}
    reply = submit(service, "explain", bee, b"no picture", bee, **asked)
    assert reply.status_code == 202
    job = reply.json()
    assert reply.headers["location"] == f"/jobs/{job['id']}"
    seen = []
    while (status := service.get(f"/jobs/{job['id']}").json())["state"] in {"queued", "running"}:
        seen.append(status["progress"])
        time.sleep(0.1)
    assert (status["state"], status["done"], status["progress"], status["pictures"]) == ("done", 3, 1.0, 3)
    assert seen == sorted(seen)
    result = service.get(f"/jobs/{job['id']}/result").json()
    assert (result["id"], result["state"]) == (job["id"], "done")
    first, error, third = result["answers"]
    assert error["kind"] == "unsupported_format"
    at_once = service.ask("/explain", bee, **asked).json()
    assert at_once["cut"] == []
    for found in (first, third):
        assert found["evidence"] == at_once["evidence"]
        assert found["predictions"] == at_once["predictions"]
        assert found["provenance"] == at_once["provenance"]
    assert job["id"] in [each["id"] for each in service.get("/jobs").json()["jobs"]]


def test_heavy_work_is_for_jobs(service, bee):
    refused = service.ask("/explain", bee, faithfulness="true", steps="60", control_maps="99")
    assert refused.status_code == 422
    assert "by a job" in refused.json()["error"]
    taken = submit(service, "explain", bee, faithfulness="true", steps="60", control_maps="99")
    assert taken.status_code == 202
    httpx.delete(f"{service.url}/jobs/{taken.json()['id']}", trust_env=False)
    job = submit(service, "explain", bee, faithfulness="true", steps="20", control_maps="5").json()
    assert ended(service, job["id"])["state"] == "done"
    (found,) = service.get(f"/jobs/{job['id']}/result").json()["answers"]
    judged = found["evidence"][0]["faithfulness"]
    assert (judged["control_maps"], len(judged["deletion"]["scores"])) == (5, 21)
    job = httpx.post(
        f"{service.url}/jobs/filters",
        files={"channels": (None, "1,2"), "steps": (None, "4")},
        trust_env=False,
    ).json()
    assert ended(service, job["id"])["state"] == "done"
    (made,) = service.get(f"/jobs/{job['id']}/result").json()["answers"]
    assert [each["channel"] for each in made["templates"]] == [1, 2]


def test_a_cancelled_job_stops_and_a_forgotten_one_is_gone(service, bee):
    job = submit(service, "explain", bee, bee, method="rise", faithfulness="true", steps="100").json()
    while service.get(f"/jobs/{job['id']}").json()["state"] == "queued":
        time.sleep(0.1)
    began = time.monotonic()
    assert httpx.delete(f"{service.url}/jobs/{job['id']}", trust_env=False).status_code == 200
    assert ended(service, job["id"], 10)["state"] == "cancelled"
    assert time.monotonic() - began < 5
    httpx.delete(f"{service.url}/jobs/{job['id']}", trust_env=False)
    for route in ("", "/result"):
        assert service.get(f"/jobs/{job['id']}{route}").status_code == 404


def test_bad_jobs_are_told_at_once(service, bee):
    for verb, options, says in (
        ("explain", {"method": "lime"}, "grad_cam"),
        ("explain", {"target": "wasp"}, "bee"),
        ("explain", {"steps": "9999"}, "200"),
        ("predict", {"target": "bee"}, "deadline_ms"),
    ):
        reply = submit(service, verb, bee, **options)
        assert reply.status_code == 422
        assert says in reply.json()["error"]
    assert submit(service, "heatmap", bee).status_code in {404, 405}
    assert submit(service, "explain").status_code in {415, 422}
    for name in ("x", "a" * 22, "keeper.lock"):
        assert service.get(f"/jobs/{name}").json()["kind"] == "no_such_job"


@pytest.mark.soak
def test_jobs_survive_kills_of_their_process_and_of_the_service(start, bundle_folder, bee, tmp_path):
    own = start(bundle_folder, jobs=tmp_path / "jobs")
    job = submit(own, "explain", *[bee] * 6, method="occlusion").json()

    def wait_for(done: int) -> None:
        deadline = time.monotonic() + 60
        while own.get(f"/jobs/{job['id']}").json()["done"] < done and time.monotonic() < deadline:
            time.sleep(0.05)

    wait_for(1)
    (process,) = own.job_processes()
    process.kill()
    wait_for(3)
    assert own.job_processes()[0].pid != process.pid
    assert own.stop() in {0, -15, 143}
    again = start(bundle_folder, jobs=tmp_path / "jobs")
    assert ended(again, job["id"])["done"] == 6
    answers = again.get(f"/jobs/{job['id']}/result").json()["answers"]
    assert len(answers) == 6
    grids = {json.dumps(answer["evidence"][0]["grid"]) for answer in answers}
    assert len(grids) == 1, "each answer is that of an undisturbed job"
    assert not list((tmp_path / "jobs" / job["id"]).glob(".*"))


@pytest.mark.soak
def test_a_picture_is_not_to_blame_for_the_end_of_the_service(start, bundle_folder, bee, tmp_path):
    """The worker is killed in mid-picture; the job's process ends with it and takes its note back."""
    own = start(bundle_folder, jobs=tmp_path / "jobs")
    job = submit(own, "explain", bee, method="occlusion").json()
    note = tmp_path / "jobs" / job["id"] / "attempt.json"
    until = time.monotonic() + 60
    while not note.exists() and time.monotonic() < until:
        time.sleep(0.02)
    (process,) = own.job_processes()
    (worker,) = own.workers()
    worker.kill()
    process.wait(10)
    assert not note.exists()


def test_a_process_that_is_to_end_is_asked_once(tmp_path):
    """Asked twice, it would end in the middle of a picture; the link is turned there and back meanwhile."""
    served = [tmp_path / "one"]
    keeper = JobSupervisor(Settings(jobs=tmp_path), lambda: served[-1])
    counting = (
        "import signal, time\n"
        "signal.signal(signal.SIGINT, lambda *_: print('asked', flush=True))\n"
        "print('ready', flush=True)\n"
        "while True: time.sleep(0.1)"
    )
    with (tmp_path / "said").open("wb") as said:
        keeper._child = subprocess.Popen([sys.executable, "-c", counting], stdout=said)
    keeper._served = served[-1]
    try:
        until = time.monotonic() + 30
        while not (tmp_path / "said").read_text() and time.monotonic() < until:
            time.sleep(0.02)
        for name in ("two", "one", "three", "three"):
            served.append(tmp_path / name)
            keeper._look()
            time.sleep(0.3)
        assert (tmp_path / "said").read_text() == "ready\nasked\n"
    finally:
        keeper._child.kill()
        keeper._child.wait()


def test_jobs_are_bounded_in_number_and_belong_to_their_key(start, bundle_folder, bee):
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("ann", "bob")}
    own = start(bundle_folder, max_jobs="2", api_keys=json.dumps(keys))
    mine = [submit(own, "explain", bee, bee, method="rise", key="ann") for _ in range(3)]
    assert [reply.status_code for reply in mine] == [202, 202, 429]
    assert int(mine[2].headers["retry-after"]) > 0
    name = mine[0].json()["id"]
    for route in (f"/jobs/{name}", f"/jobs/{name}/result"):
        assert own.get(route, headers={"X-API-Key": "bob"}).status_code == 404
        assert own.get(route, headers={"X-API-Key": "ann"}).status_code == 200
    assert own.get("/jobs", headers={"X-API-Key": "bob"}).json() == {"jobs": []}


def test_what_ended_long_ago_is_forgotten(tmp_path):
    store = FolderJobStore(tmp_path, most_bytes=10**9)
    old, new, waiting = (store.create("explain", {}, [b"x"], None) for _ in range(3))
    store.update(old, state="done", ended=time.time() - 100)
    store.update(new, state="done", ended=time.time())
    assert store.remove_old(50) == 1
    assert [job.id for job in store.jobs()] == [new.id, waiting.id]
    assert store.status(waiting) == JobStatus()


def test_an_answer_that_a_kill_cut_off_is_dropped(tmp_path):
    store = FolderJobStore(tmp_path, most_bytes=10**9)
    job = store.create("explain", {}, [b"x", b"y"], None)
    store.add_answer(job, 0, b'{"whole": 1}')
    with (tmp_path / job.id / "answers.jsonl").open("ab") as lines:
        lines.write(b'{"cut')
    assert list(store.answers(job)) == [b'{"whole": 1}']
    assert store.answered(job) == 1
    store.add_answer(job, 1, b'{"next": 2}')
    assert [json.loads(line) for line in store.answers(job)] == [{"whole": 1}, {"next": 2}]


def test_no_two_processes_work_on_one_job(tmp_path):
    store = FolderJobStore(tmp_path, most_bytes=10**9)
    job = store.create("explain", {}, [], None)
    with store.try_lock(job) as first, FolderJobStore(tmp_path, most_bytes=10**9).try_lock(job) as second:
        assert (first, second) == (True, False)
    with store.try_lock(job) as third:
        assert third


@pytest.mark.soak
def test_jobs_run_in_the_order_of_their_submission_and_leave_json_alone(start, bundle_folder, bee, tmp_path):
    own = start(bundle_folder, jobs=tmp_path / "jobs")
    names = [submit(own, "predict", bee).json()["id"] for _ in range(4)]
    ends = [ended(own, name)["ended"] for name in names]
    assert ends == sorted(ends)
    files = [path for name in names for path in (tmp_path / "jobs" / name).iterdir() if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".jsonl", ""}
    for path in files:
        for line in path.read_text().splitlines():
            assert isinstance(json.loads(line), dict)


@pytest.mark.soak
def test_a_job_of_one_picture_does_not_wait_for_the_end_of_a_longer_one(service, bee):
    long = submit(service, "explain", *[bee] * 6, method="occlusion").json()["id"]
    while service.get(f"/jobs/{long}").json()["state"] == "queued":
        time.sleep(0.05)
    short = submit(service, "predict", bee).json()["id"]
    first, last = ended(service, short), ended(service, long)
    assert first["state"] == last["state"] == "done"
    assert first["ended"] < last["ended"]
    answers = service.get(f"/jobs/{long}/result").json()["answers"]
    assert len(answers) == 6
    assert all(answer["evidence"] == answers[0]["evidence"] for answer in answers)


def test_a_picture_that_kills_its_process_is_passed_over_after_two_tries(tmp_path):
    store = FolderJobStore(tmp_path, most_bytes=10**9)
    job = store.create("explain", {}, [b"x", b"y"], None)
    assert [store.attempt(job, 0) for _ in range(3)] == [1, 2, 3]
    assert store.attempt(job, 1) == 1
    store.clear_attempt(job)
    assert store.attempt(job, 1) == 1, "a restart of the service is nobody's fault"


def test_only_so_many_ended_jobs_are_kept_and_none_keeps_its_pictures(tmp_path):
    store = FolderJobStore(tmp_path, most_bytes=10**9)
    jobs = [store.create("explain", {}, [b"x"], None) for _ in range(4)]
    for job in jobs[:3]:
        store.finish(job, state="done")
        assert not (tmp_path / job.id / "pictures").exists()
    assert store.remove_old(1000, most=1) == 2
    assert {job.id for job in store.jobs()} == {jobs[2].id, jobs[3].id}


def test_a_damaged_job_stops_no_other(tmp_path):
    store = FolderJobStore(tmp_path, most_bytes=10**9)
    jobs = [store.create("explain", {}, [b"x"], None) for _ in range(3)]
    (tmp_path / jobs[0].id / "job.json").write_text("")
    (tmp_path / jobs[1].id / "status.json").write_text('{"state": "running", "of another version": 1}')
    assert store.get(jobs[0].id) is None
    assert [job.id for job in store.unfinished()] == [jobs[2].id]
    assert store.status(jobs[1]).state == "failed"


def test_odd_numbers_of_a_form_do_not_stop_the_others(service, bee):
    """Pydantic takes 1000.0 for a whole number; so does a job."""
    job = submit(service, "predict", bee, deadline_ms="1000.0").json()
    assert ended(service, job["id"])["state"] == "done"
