"""How long-running work reports its progress: one signature for all of it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A listener that is called often while work goes on; it may raise to stop the work."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` steps of ``what`` are done."""
        ...


def no_progress(what: str, done: int, total: int) -> None:
    """Keep silent."""
