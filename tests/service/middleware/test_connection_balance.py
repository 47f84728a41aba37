"""Connections go where the work is least, by rows that processes share."""

from __future__ import annotations

import http.client
import os
import re
import threading
import time

import httpx
import pytest

from service.middleware.connection_balance import ConnectionBalance


@pytest.fixture
def two(tmp_path, monkeypatch):
    """Two workers' ends of one file, both of this process as far as they know."""
    first = ConnectionBalance(tmp_path, 2)
    monkeypatch.setattr(os, "getpid", lambda: os.getppid())
    second = ConnectionBalance(tmp_path, 2)
    return first, second


def test_only_who_has_clearly_more_sends_a_client_away(two):
    first, second = two
    assert not first.should_close()
    first.report(8)
    time.sleep(1.2)
    assert not second.should_close()
    assert first.should_close()
    second.report(7)
    time.sleep(1.2)
    assert not first.should_close()
    assert not second.should_close()


def test_rows_of_a_run_before_are_taken_over(tmp_path, monkeypatch):
    """A container's processes have the same numbers in each run, and the file outlives them."""
    own, other = os.getpid(), os.getppid()
    for _ in range(2):
        both = []
        for number in (own, other):
            monkeypatch.setattr(os, "getpid", lambda number=number: number)
            both.append(ConnectionBalance(tmp_path, 2))
    for each in both:
        each.report(6)
    time.sleep(1.2)
    assert [each.should_close() for each in both] == [False, False], (
        "the same load: no row is an idle worker's"
    )


def test_one_batch_of_answers_is_not_sent_away_as_a_whole(two):
    first, _ = two
    first.report(8)
    time.sleep(1.2)
    assert sum(first.should_close() for _ in range(8)) == 3


def test_a_worker_alone_and_one_beside_the_dead_keep_their_clients(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 2**22 + 1)
    ConnectionBalance(tmp_path, 2)
    monkeypatch.undo()
    alone = ConnectionBalance(tmp_path, 2)
    alone.report(30)
    time.sleep(1.2)
    assert not alone.should_close()


@pytest.mark.soak
def test_clients_that_came_at_once_end_up_with_both_workers(start, bundle_folder, bee):
    """Each on a connection of its own that it keeps as long as it may."""
    own = start(bundle_folder, workers="2")
    host = own.url.removeprefix("http://")
    form = httpx.Request("POST", f"{own.url}/explain", files={"image": ("p.jpg", bee, "image/jpeg")})
    body = form.read()
    done, sent_on, statuses = threading.Event(), [], set()

    def ask() -> None:
        line = http.client.HTTPConnection(host, timeout=30)
        while not done.is_set():
            line.request("POST", "/explain", body, {"Content-Type": form.headers["content-type"]})
            reply = line.getresponse()
            reply.read()
            statuses.add(reply.status)
            if reply.getheader("connection") == "close":
                sent_on.append(1)

    threads = [threading.Thread(target=ask, daemon=True) for _ in range(12)]
    for thread in threads:
        thread.start()
    time.sleep(4)
    before = [worker.cpu_times().user for worker in own.workers()]
    time.sleep(4)
    used = [worker.cpu_times().user - cpu for worker, cpu in zip(own.workers(), before, strict=True)]
    done.set()
    for thread in threads:
        thread.join()
    print(f"\n{len(sent_on)} times sent on; seconds of each worker in four: {used}")
    assert statuses == {200}
    assert min(used) > 0.6 * max(used)
    assert re.search(r"^lucida_places 0\.0$", own.get("/metrics").text, re.M)
