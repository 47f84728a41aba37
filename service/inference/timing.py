"""Milliseconds of the parts of one request."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from service.tracing import span


class Timer:
    """A stopwatch that starts when it is made."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._parts: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count what happens inside to ``name``, which is a span of its trace too."""
        start = time.perf_counter()
        with span(name):
            yield
        self._parts[name] = self._parts.get(name, 0.0) + (time.perf_counter() - start) * 1000

    def parts(self) -> dict[str, float]:
        """Return the milliseconds of each part, rounded, with the total so far."""
        total = (time.perf_counter() - self._start) * 1000
        return {name: round(value, 2) for name, value in {**self._parts, "total": total}.items()}
