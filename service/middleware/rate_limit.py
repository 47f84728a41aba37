"""Requests a minute for each API key, counted over all worker processes."""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
from pathlib import Path

_MINUTE = 60.0
_ROW = struct.Struct("dd")


class RateLimit:
    """A limit of so many requests a minute for each name, over all processes that open the same file.

    A bucket of one minute's requests that fills evenly: who has been away may send them at once.
    """

    def __init__(self, folder: Path, names: list[str], per_minute: int) -> None:
        """Open the file; it lies in ``folder`` under a name made of the names, so that no two sets share
        rows.
        """
        path = folder / f"allowance-{hashlib.sha256(repr(names).encode()).hexdigest()[:16]}"
        self._rows = {name: _ROW.size * row for row, name in enumerate(names)}
        self._most, self._rate = float(per_minute), per_minute / _MINUTE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        size = max(_ROW.size * len(names), 1)
        # Not a sparse file: a page that a full disk has no room for would end the process (SIGBUS).
        os.posix_fallocate(self._file, 0, size)
        self._memory = mmap.mmap(self._file, size)

    def wait(self, name: str) -> float:
        """Count a request; return the seconds until one is allowed, 0 where this one is allowed."""
        place = self._rows[name]
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            used: float
            at: float
            # Zeroed bytes are an empty past: used nothing, at the beginning of time.
            used, at = _ROW.unpack_from(self._memory, place)
            now = time.time()
            if at > now + 1.0:
                # The clock was set back.
                used, at = 0.0, now
            used = max(0.0, used - max(0.0, now - at) * self._rate)
            if used + 1.0 > self._most:
                return float((used + 1.0 - self._most) / self._rate)
            _ROW.pack_into(self._memory, place, used + 1.0, now)
            return 0.0
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)
