"""Entries of a run reach MLflow once, in order, also after it was away."""

from __future__ import annotations

import threading
import time

import pytest
from mlflow.exceptions import BAD_REQUEST, INVALID_PARAMETER_VALUE, MlflowException

from pipelines.errors import TrackerUnavailable, TrainingError
from pipelines.tracking.outbox import Outbox, pack_bytes, unpack_bytes


class Tracker:
    """Takes news in order, when it is there."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.away = False
        self.tried = threading.Event()

    def __call__(self, news) -> None:
        self.tried.set()
        if self.away:
            raise ConnectionError("nobody\n answers")
        self.got.append(news["n"])


@pytest.fixture
def tracker() -> Tracker:
    return Tracker()


def test_news_arrives_in_order(tmp_path, tracker):
    outbox = Outbox(tmp_path / "o.jsonl", tracker)
    for n in range(50):
        outbox.add(n=n)
    outbox.flush(10)
    outbox.close()
    assert tracker.got == list(range(50))


def test_adding_never_waits_for_the_tracker(tmp_path):
    release = threading.Event()
    outbox = Outbox(tmp_path / "o.jsonl", lambda news: release.wait(10))
    began = time.monotonic()
    for n in range(20):
        outbox.add(n=n)
    assert time.monotonic() - began < 2
    release.set()
    outbox.flush(10)
    outbox.close()


def test_what_a_tracker_missed_is_said_when_it_is_back(tmp_path, tracker):
    outbox = Outbox(tmp_path / "o.jsonl", tracker)
    tracker.away = True
    outbox.add(n=1)
    outbox.add(n=2)
    assert tracker.tried.wait(5)
    with pytest.raises(TrackerUnavailable, match=r"not taken 2 pieces .*nobody answers.*kept in .*o\.jsonl"):
        outbox.flush(0.5)
    tracker.away = False
    outbox.add(n=3)
    outbox.flush(10)
    outbox.close()
    assert tracker.got == [1, 2, 3]


def test_the_next_process_says_what_the_last_could_not(tmp_path, tracker):
    tracker.away = True
    first = Outbox(tmp_path / "o.jsonl", tracker)
    first.add(n=1)
    first.add(n=2)
    first.close()
    tracker.away = False
    second = Outbox(tmp_path / "o.jsonl", tracker)
    second.add(n=3)
    second.flush(10)
    second.close()
    third = Outbox(tmp_path / "o.jsonl", tracker)
    third.flush(10)
    third.close()
    assert tracker.got == [1, 2, 3]


def test_a_line_that_a_crash_cut_off_is_dropped_and_overwritten(tmp_path, tracker):
    path = tmp_path / "o.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n{"n": ')
    path.with_suffix(".delivered").write_text("1")
    outbox = Outbox(path, tracker)
    outbox.add(n=3)
    outbox.flush(10)
    outbox.close()
    assert tracker.got == [2, 3]
    assert path.read_bytes() == b'{"n": 1}\n{"n": 2}\n{"n": 3}\n'


def test_a_flush_wakes_a_delivery_that_was_resting(tmp_path, tracker, monkeypatch):
    monkeypatch.setattr("pipelines.tracking.outbox._PAUSES_S", (60.0,))
    tracker.away = True
    outbox = Outbox(tmp_path / "o.jsonl", tracker)
    outbox.add(n=1)
    assert tracker.tried.wait(5)
    time.sleep(0.2)
    tracker.away = False
    outbox.flush(5)
    outbox.close()
    assert tracker.got == [1]


@pytest.mark.parametrize("error", [ValueError("odd"), KeyError("k"), RuntimeError()])
def test_whatever_a_store_raises_the_news_is_kept(tmp_path, error):
    got, failing = [], [True]

    def deliver(news) -> None:
        if failing.pop() if failing else False:
            raise error
        got.append(news["n"])

    outbox = Outbox(tmp_path / "o.jsonl", deliver)
    outbox.add(n=1)
    outbox.flush(10)
    outbox.close()
    assert got == [1]


def test_a_databases_own_trouble_is_no_refusal(tmp_path):
    """MLflow dresses a lost connection as BAD_REQUEST."""
    got, failing = [], [True, True]

    def deliver(news) -> None:
        if failing:
            failing.pop()
            raise MlflowException("connection already closed", error_code=BAD_REQUEST)
        got.append(news["n"])

    outbox = Outbox(tmp_path / "o.jsonl", deliver)
    outbox.add(n=1)
    outbox.flush(10)
    outbox.close()
    assert (got, outbox.refused) == ([1], [])


def test_a_mark_that_a_power_cut_emptied_means_from_the_start(tmp_path, tracker):
    path = tmp_path / "o.jsonl"
    path.write_bytes(b'{"n": 1}\n{"n": 2}\n')
    path.with_suffix(".delivered").write_text("")
    outbox = Outbox(path, tracker)
    outbox.flush(10)
    outbox.close()
    assert tracker.got == [1, 2]


def test_a_full_disk_is_said(small_disk, tracker):
    tracker.away = True
    outbox = Outbox(small_disk / "o.jsonl", tracker)
    outbox.add(n=1)
    with pytest.raises(TrainingError, match="No space left"):
        outbox.add(n=2, data="x" * 200_000_000)
    outbox.add(n=3)
    tracker.away = False
    outbox.flush(10)
    assert tracker.got == [1, 3]
    assert [line[:8] for line in (small_disk / "o.jsonl").read_bytes().splitlines()] == [
        b'{"n": 1}',
        b'{"n": 3}',
    ]
    outbox.close()


def test_news_that_is_refused_does_not_hold_up_the_rest(tmp_path):
    got = []

    def deliver(news) -> None:
        if news["n"] == 2:
            raise MlflowException("no such\nname", error_code=INVALID_PARAMETER_VALUE)
        got.append(news["n"])

    outbox = Outbox(tmp_path / "o.jsonl", deliver)
    for n in (1, 2, 3):
        outbox.add(n=n)
    outbox.flush(10)
    outbox.close()
    assert got == [1, 3]
    assert outbox.refused == ["no such name"]


def test_bytes_survive_the_file():
    assert unpack_bytes(pack_bytes(bytes(range(256)))) == bytes(range(256))
