"""A lease on a job in an object store: one holder, who says again and again that it lives.

A holder that has not been heard of for a while has lost its lease. What is compared is the lease's content at
two moments of one observer, so the machines' clocks need not agree.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from service.jobs.bucket import Bucket
from service.jobs.store import JobStoreUnavailable

LEASE_SECONDS = 30.0
"""Silence after which a lease may be taken over."""
_BEAT_SECONDS = 5.0
_FREE = b"{}"


@dataclass(frozen=True, slots=True)
class _Sight:
    """Sight of a lease when it had changed."""

    content: bytes
    when: float


class Leases:
    """The leases that this process holds or watches; ``holder`` is this process's own mark."""

    def __init__(self, bucket: Bucket, holder: str) -> None:
        self._bucket, self._holder = bucket, holder
        self._seen: dict[str, _Sight] = {}
        self._lost: dict[str, threading.Event] = {}

    @contextmanager
    def hold(self, key: str) -> Iterator[bool]:
        """Yield whether this process has the lease; while it does, it is renewed beside."""
        if not self._take(key):
            yield False
            return
        ended, lost = threading.Event(), threading.Event()
        self._lost[key] = lost
        beat = threading.Thread(target=self._renew, args=(key, ended, lost), daemon=True)
        beat.start()
        try:
            yield True
        finally:
            ended.set()
            beat.join()
            del self._lost[key]
            self._give_back(key, lost)

    def lost(self, key: str) -> bool:
        """Return whether a lease that this process held has gone to another, or may have."""
        event = self._lost.get(key)
        return event is not None and event.is_set()

    def _take(self, key: str) -> bool:
        content, tag = self._bucket.read_with_tag(key)
        if content is None:
            return self._bucket.create(key, self._mark())
        if content != _FREE:
            seen = self._seen.get(key)
            if seen is None or seen.content != content:
                self._seen[key] = _Sight(content, time.monotonic())
                return False
            if time.monotonic() - seen.when < LEASE_SECONDS:
                return False
        self._seen.pop(key, None)
        return self._bucket.replace(key, self._mark(), tag)

    def _renew(self, key: str, ended: threading.Event, lost: threading.Event) -> None:
        heard = time.monotonic()
        while not ended.wait(_BEAT_SECONDS):
            with suppress(JobStoreUnavailable):
                content, tag = self._bucket.read_with_tag(key)
                if not self._is_own(content) or not self._bucket.replace(key, self._mark(), tag):
                    lost.set()
                    return
                heard = time.monotonic()
            if time.monotonic() - heard > LEASE_SECONDS:
                lost.set()
                return

    def _give_back(self, key: str, lost: threading.Event) -> None:
        # Where the store fails now, others wait until the lease has been silent for long enough.
        with suppress(JobStoreUnavailable):
            content, tag = self._bucket.read_with_tag(key)
            if not lost.is_set() and self._is_own(content):
                self._bucket.replace(key, _FREE, tag)

    def _mark(self) -> bytes:
        return json.dumps({"holder": self._holder, "beat": time.time()}).encode()

    def _is_own(self, content: bytes | None) -> bool:
        return content is not None and json.loads(content).get("holder") == self._holder
