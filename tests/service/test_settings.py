"""Settings of the service and their limits."""

from __future__ import annotations

import time

import pytest

from service.middleware.rate_limit import RateLimit
from service.settings import Settings, count_cores


@pytest.mark.parametrize(
    ("text", "expected"), [("max 100000", None), ("100000 100000", 1), ("50000 100000", 1), ("rubbish", None)]
)
def test_cores_are_those_of_the_container(tmp_path, text, expected):
    quota = tmp_path / "cpu.max"
    quota.write_text(text)
    assert count_cores(quota) == (count_cores(tmp_path / "none") if expected is None else expected)


def test_an_allowance_is_one_for_all_processes_and_each_name_has_its_own(tmp_path, monkeypatch):
    one, other = (RateLimit(tmp_path, ["ann", "bob"], 60) for _ in range(2))
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    taken = [each.wait("ann") for each in (one, other) * 30]
    assert taken == [0.0] * 60
    assert one.wait("ann") == pytest.approx(1.0)
    assert one.wait("bob") == 0.0
    now += 10
    assert [other.wait("ann") for _ in range(10)] == [0.0] * 10
    assert other.wait("ann") > 0
    now -= 3600
    assert one.wait("ann") == 0.0, "a clock that was set back locks nobody out"
    assert RateLimit(tmp_path, ["bob", "ann"], 60).wait("bob") == 0.0


def test_limits_that_shut_each_other_out_are_told_or_fitted():
    with pytest.raises(ValueError, match="LUCIDA_MAX_JOB_BYTES is 500,000,000, more than LUCIDA_MAX_UPLOADS"):
        Settings(max_job_bytes=500_000_000)
    assert Settings(max_job_bytes=500_000_000, max_uploads_bytes=600_000_000).most_pictures == 16
    assert Settings(request_threads=2, max_queue=3).most_pictures == 5
