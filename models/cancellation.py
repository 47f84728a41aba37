"""How long a piece of work may take, asked at each step of it.

A forward cannot be stopped from outside, but the loops round it can: decoding, forwards, masks, steps of an
integral. Each of these calls :func:`check_deadline`, which costs nothing where nobody set a limit. The limit
belongs to the context of one piece of work, as a context variable, so that no function in between has to pass
it on and no two pieces share it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from models.errors import Cancelled, DeadlineExceeded


class Deadline:
    """A point in time after which work is not wanted any more, or never if ``seconds`` is None.

    ``tick`` is called at each check, for whoever shows progress or cancels from outside. A ``budget`` is
    a limit that was asked for, so that less may be done from the start to meet it; without, the limit
    only guards, and what is answered in time does not depend on how fast the machine is.
    """

    def __init__(
        self,
        seconds: float | None,
        *,
        tick: Callable[[], None] | None = None,
        budget: bool = False,
        parent: Deadline | None = None,
    ) -> None:
        self.seconds, self.budget, self._parent = seconds, budget, parent
        self._end = None if seconds is None else time.monotonic() + seconds
        self._tick = tick
        self._cancelled = False

    @property
    def remaining(self) -> float | None:
        """Seconds; negative once it has passed, None where there is none."""
        return None if self._end is None else self._end - time.monotonic()

    def cancel(self) -> None:
        """Make the next check raise Cancelled; may be called from any thread."""
        self._cancelled = True

    def check(self) -> None:
        """Raise Cancelled or DeadlineExceeded where the work should stop."""
        if self._parent is not None:
            self._parent.check()
        if self._cancelled:
            raise Cancelled("The work was cancelled.")
        remaining = self.remaining
        if remaining is not None and remaining <= 0:
            raise DeadlineExceeded(f"The work did not end within its {self.seconds:g} seconds.")
        if self._tick is not None:
            self._tick()


_CURRENT: ContextVar[Deadline | None] = ContextVar("deadline", default=None)


def current_deadline() -> Deadline | None:
    """Return the deadline of this context, if it has one."""
    return _CURRENT.get()


@contextmanager
def deadline_scope(deadline: Deadline) -> Iterator[Deadline]:
    """Hold the work inside to a deadline."""
    before = _CURRENT.set(deadline)
    try:
        yield deadline
    finally:
        _CURRENT.reset(before)


@contextmanager
def time_share(share: float) -> Iterator[None]:
    """Hold the work inside to a share (0 to 1) of what is left of the context's deadline, so that something
    is left for what comes after it; DeadlineExceeded inside then says that the share is used up.
    """
    whole = _CURRENT.get()
    remaining = whole.remaining if whole is not None else None
    if remaining is None:
        yield
        return
    with deadline_scope(Deadline(max(remaining, 0.0) * share, parent=whole)):
        yield


def check_deadline() -> None:
    """Stop here, by Cancelled or DeadlineExceeded, if the context's deadline says so."""
    deadline = _CURRENT.get()
    if deadline is not None:
        deadline.check()
