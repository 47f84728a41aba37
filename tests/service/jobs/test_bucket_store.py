"""Jobs in an object store: what holds in a folder holds there, for several machines at once."""

from __future__ import annotations

import json
import os
import signal
import time

import httpx
import psutil
import pytest

from service.jobs import lease
from service.jobs.bucket_store import BucketJobStore
from service.jobs.folder_store import FolderJobStore
from service.jobs.open import open_job_store
from service.jobs.store import JobStatus, JobStoreUnavailable, JobTaken
from service.settings import Settings
from tests.service.jobs.test_jobs import ended, submit
from tests.support.object_store import faulty_s3


@pytest.fixture
def s3():
    """A client and the server of a bucket named "jobs"."""
    with faulty_s3("jobs") as (client, server):
        yield client, server


@pytest.fixture
def bucket(s3):
    """A function that opens the bucket as one more process would."""
    return lambda **options: BucketJobStore(
        "s3://jobs/a service", **{"most_bytes": 10**9, "patience": 1} | options
    )


@pytest.fixture(params=["folder", "bucket"])
def store(request, tmp_path):
    """A store of each kind."""
    if request.param == "folder":
        return FolderJobStore(tmp_path, most_bytes=10**6)
    return request.getfixturevalue("bucket")(most_bytes=10**6)


def test_a_job_is_kept_as_it_was_submitted_and_leaves_nothing_behind(store):
    job = store.create("explain", {"top_k": "2"}, [b"first", b"second"], "ann")
    assert store.get(job.id) == job
    assert store.get("../../etc/passwd") is store.get("A" * 22) is None
    assert [store.image(job, n) for n in (0, 1)] == [b"first", b"second"]
    assert store.status(job) == JobStatus()
    store.add_answer(job, 0, b'{"n": 0}')
    assert (store.answered(job), list(store.answers(job))) == (1, [b'{"n": 0}'])
    assert store.size() > len(b"firstsecond")
    store.remove(job)
    assert (store.jobs(), store.unfinished(), store.size()) == ([], [], 0)
    assert store.cancelled(job)
    assert store.status(job).state == "cancelled"
    store.update(job, done=1)
    assert store.get(job.id) is None, "what was removed does not come back"


def test_jobs_wait_in_the_order_of_their_submission_until_they_end(store):
    jobs = [store.create("predict", {}, [b"x"], None) for _ in range(4)]
    assert store.jobs() == store.unfinished() == jobs
    store.update(jobs[1], state="running")
    store.finish(jobs[0], state="done")
    store.cancel(jobs[2])
    assert store.unfinished() == [jobs[1], jobs[3]]
    assert store.status(jobs[2]).state == "cancelled"
    store.cancel(jobs[1])
    assert store.cancelled(jobs[1])
    assert store.status(jobs[1]).state == "running", "its worker says when it has stopped"
    assert not store.cancelled(jobs[3])


def test_what_ended_goes_by_age_by_number_and_for_new_ones(store):
    jobs = [store.create("predict", {}, [b"x" * 200_000], None) for _ in range(4)]
    for n, job in enumerate(jobs[:3]):
        store.update(job, state="done", ended=time.time() - 100 + n)
    assert store.remove_old(99.5) == 1
    assert store.remove_old(1000, most=1) == 1
    assert store.jobs() == jobs[2:]
    store.make_room(700_000)
    assert store.jobs() == jobs[3:]
    with pytest.raises(OSError, match="bytes for jobs are in use"):
        store.make_room(900_000)
    assert store.jobs() == jobs[3:]


def test_a_submission_that_was_killed_in_the_middle_is_no_job_and_goes_when_it_is_old(
    s3, bucket, monkeypatch
):
    client, _ = s3
    store = bucket()
    client.put_object(Bucket="jobs", Key=f"a service/jobs/{'A' * 22}/pictures/00000", Body=b"x")
    assert (store.jobs(), store.unfinished(), store.size()) == ([], [], 1)
    store.remove_abandoned()
    assert store.size() == 1, "somebody may still be sending it"
    monkeypatch.setattr("service.jobs.bucket_store.ABANDONED_SECONDS", -5)
    whole = store.create("predict", {}, [b"x"], None)
    store.remove_abandoned()
    assert store.image(whole, 0) == b"x"
    assert store.size() == bucket().size() > 1
    assert "A" * 22 not in str(client.list_objects_v2(Bucket="jobs")["Contents"])


def test_damaged_objects_stop_no_other_job(s3, bucket):
    client, _ = s3
    jobs = [bucket().create("predict", {}, [b"x"], None) for _ in range(3)]
    client.put_object(Bucket="jobs", Key=f"a service/jobs/{jobs[0].id}/job.json", Body=b"{")
    client.put_object(Bucket="jobs", Key=f"a service/jobs/{jobs[1].id}/status.json", Body=b'{"new": 1}')
    store = bucket()
    assert store.get(jobs[0].id) is None
    assert store.unfinished() == [jobs[2]]
    assert store.status(jobs[1]).state == "failed"


def test_of_two_processes_one_works_until_it_ends_or_falls_silent(bucket, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 1.0)
    monkeypatch.setattr(lease, "_BEAT_SECONDS", 0.2)
    first, second = bucket(), bucket()
    job = first.create("explain", {}, [b"x", b"y"], None)
    until = time.monotonic() + 2.5
    with first.try_lock(job) as mine:
        assert mine
        while time.monotonic() < until:
            with second.try_lock(job) as theirs:
                assert not theirs, "its holder lives"
            time.sleep(0.1)
    with second.try_lock(job) as theirs:
        assert theirs, "it was given back, so nobody waits"
        # Silence, as of a machine that stands still: its renewals do not arrive.
        monkeypatch.setattr(lease, "_BEAT_SECONDS", 60.0)
        time.sleep(0.3)
    with first.try_lock(job) as mine:
        assert mine


def test_who_lost_a_job_can_neither_answer_nor_end_it(bucket, monkeypatch):
    monkeypatch.setattr(lease, "LEASE_SECONDS", 0.6)
    monkeypatch.setattr(lease, "_BEAT_SECONDS", 1.5)
    slow, quick = bucket(), bucket()
    job = slow.create("explain", {}, [b"x", b"y"], None)
    with slow.try_lock(job) as mine:
        assert mine
        slow.add_answer(job, 0, b'{"by": "slow"}')
        with quick.try_lock(job) as too_early:
            assert not too_early
        time.sleep(0.8)
        with quick.try_lock(job) as taken:
            assert taken
            assert quick.answered(job) == 1
            quick.add_answer(job, 1, b'{"by": "quick"}')
            with pytest.raises(JobTaken):
                slow.add_answer(job, 1, b'{"by": "slow"}')
            time.sleep(1.2)
            with pytest.raises(JobTaken):
                slow.finish(job, state="failed")
            with pytest.raises(JobTaken):
                slow.cancelled(job)
            quick.finish(job, state="done")
    assert [json.loads(answer)["by"] for answer in bucket().answers(job)] == ["slow", "quick"]
    assert bucket().status(job).state == "done"


def test_an_image_is_passed_over_for_the_processes_that_it_ended_alone(bucket):
    first = bucket()
    job = first.create("explain", {}, [b"x", b"y"], None)
    assert [first.attempt(job, 0) for _ in range(3)] == [1, 1, 1], "the process lives"
    assert bucket().attempt(job, 0) == 2
    assert bucket().attempt(job, 0) == 3
    assert bucket().attempt(job, 1) == 1
    first.clear_attempt(job)
    assert bucket().attempt(job, 1) == 1


def test_a_store_that_fails_is_named_and_loses_nothing(s3, bucket):
    _, server = s3
    store = bucket()
    job = store.create("explain", {}, [b"x"], None)
    refused = iter([True, True])
    server.refuse = lambda request: next(refused, False)
    store.add_answer(job, 0, b"{}")
    server.refuse = lambda request: True
    for failing in (store.jobs, store.unfinished, store.size, lambda: store.status(job)):
        with pytest.raises(JobStoreUnavailable, match=r"s3://jobs/a service fails: .*503"):
            failing()
    server.refuse = lambda request: False
    assert (store.answered(job), store.jobs()) == (1, [job])


def test_a_bucket_that_is_not_there_is_named(s3, tmp_path):
    settings = Settings(jobs=tmp_path, jobs_url="s3://nowhere/jobs")
    with pytest.raises(JobStoreUnavailable, match=r"s3://nowhere/jobs fails: .*NoSuchBucket"):
        open_job_store(settings, patience=1).jobs()


@pytest.mark.parametrize("url", ["ftp://host/jobs", "/a/folder", "s3://", "s3://bucket?x=1"])
def test_another_kind_of_place_is_refused(url):
    with pytest.raises(ValueError, match="jobs_url"):
        Settings(jobs_url=url)


@pytest.mark.soak
def test_two_replicas_share_their_jobs_and_one_goes_on_with_what_the_other_left(
    s3, start, bundle_folder, bee
):
    _, server = s3
    first, second = (start(bundle_folder, jobs_url="s3://jobs/replicas") for _ in range(2))
    job = submit(first, "explain", *[bee] * 8, method="occlusion").json()
    while not 2 <= second.get(f"/jobs/{job['id']}").json()["done"] < 8:
        time.sleep(0.1)
    assert second.get("/jobs").json()["jobs"][0]["id"] == job["id"]
    supervisor = psutil.Process(first.process.pid)
    for process in [*supervisor.children(recursive=True), supervisor]:
        os.kill(process.pid, signal.SIGKILL)
    status = ended(second, job["id"], seconds=150)
    assert (status["state"], status["done"]) == ("done", 8)
    answers = second.get(f"/jobs/{job['id']}/result").json()["answers"]
    assert [answer["evidence"] for answer in answers] == [answers[0]["evidence"]] * 8
    server.refuse = lambda request: True
    away = httpx.get(f"{second.url}/jobs/{job['id']}", trust_env=False, timeout=30)
    assert (away.status_code, away.json()["kind"]) == (503, "jobs_unavailable")
    assert second.ask("/predict", bee).status_code == 200
    server.refuse = lambda request: False
    assert second.get(f"/jobs/{job['id']}").json()["state"] == "done"
