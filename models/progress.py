"""How long work says how far it is: one signature for all of it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Is called often while work goes on; may raise to stop it."""

    def __call__(self, what: str, done: int, total: int) -> None:
        """Take note that ``done`` of ``total`` steps of ``what`` are done."""
        ...


def no_progress(what: str, done: int, total: int) -> None:
    """Keep silent."""
