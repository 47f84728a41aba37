"""Even work for all workers, though each connection belongs to one of them.

The worker that wakes up first takes all connections that wait to be accepted, and keeps them: of 32 clients
that come at once one of two workers may have 30, while the core of the other idles. So each worker says in a
few bytes that all share how much it has at hand, and one that has clearly more than another ends the
connection with its answer, as HTTP/1.1 allows at any time. Whoever comes again finds the idler one more
likely to accept.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import os
import socket
import struct
import time
from pathlib import Path

import psutil

_ROW = struct.Struct("qddd")
"""Process, when it told, images at hand then, and their mean before."""
_MEMORY_SECONDS = 0.5
_MARGIN, _SHARE = 1.0, 0.25
"""Clearly more is more than another by so many images, and by such a share of its own load."""


class ConnectionBalance:
    """A worker's row among those of all workers, in a file in ``folder``."""

    def __init__(self, folder: Path, workers: int) -> None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # Of this machine alone: containers that share the folder have processes of the same numbers.
        path = folder / f"balance.{socket.gethostname()}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            # One row more than workers: one that ends may still be there when its successor comes.
            size = _ROW.size * (workers + 1)
            # Not a sparse file: a page that a full disk has no room for would end the process (SIGBUS).
            os.posix_fallocate(file, 0, size)
            self._memory = mmap.mmap(file, size)
            self._places = range(0, size, _ROW.size)
            # A row with our own number was left by a process before us, as in a container's next run.
            self._own = next(
                (place for place in self._places if self._process(place) == os.getpid()),
                next((place for place in self._places if not self._lives(place)), 0),
            )
            self._mean, self._at = 0.0, time.monotonic()
            self._sent, self._sent_at = 0.0, self._at
            self.report(0)
        finally:
            # Closing is not enough: the mapping has its own hold on the file.
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    def report(self, images: int) -> None:
        """Report how many requests are at work or waiting from now on."""
        now = time.monotonic()
        _, _, before, _ = _ROW.unpack_from(self._memory, self._own)
        self._mean = _decayed_mean(before, self._mean, now - self._at)
        self._at = now
        _ROW.pack_into(self._memory, self._own, os.getpid(), now, images, self._mean)

    def should_close(self) -> bool:
        """Return whether the connection that is being answered had better go to another worker; then it
        counts as gone.
        """
        now = time.monotonic()
        # The loads do not yet show the clients just sent away; without this a whole batch would be sent away.
        sent = _decayed_mean(0.0, self._sent, now - self._sent_at)
        own = self._load(self._own) - sent
        if own <= _MARGIN:
            return False
        others = [self._load(place) for place in self._places if place != self._own and self._lives(place)]
        if not others or own * (1 - _SHARE) <= min(others) + sent + _MARGIN:
            return False
        self._sent, self._sent_at = sent + 1.0, now
        return True

    def _load(self, place: int) -> float:
        _, at, images, mean = _ROW.unpack_from(self._memory, place)
        return _decayed_mean(images, self._mean if place == self._own else mean, time.monotonic() - at)

    def _process(self, place: int) -> int:
        return int(_ROW.unpack_from(self._memory, place)[0])

    def _lives(self, place: int) -> bool:
        process = self._process(place)
        return process > 0 and bool(psutil.pid_exists(process))


def _decayed_mean(now: float, before: float, seconds: float) -> float:
    """Return a running mean that forgets."""
    return float(now + (before - now) * math.exp(-max(seconds, 0.0) / _MEMORY_SECONDS))
