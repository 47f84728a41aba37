"""How many pixels may be held decoded at once.

A limit on one image does not bound a server: every thread may hold an image of the largest size, at four
bytes a pixel and more on the way. Whoever finds no room waits, as long as its deadline allows.
"""

from __future__ import annotations

import gc
import threading
import time
import weakref

from models.cancellation import check_deadline

_POLL_SECONDS = 0.05
"""Seconds between two looks at the deadline of whoever waits."""
_COLLECT_SECONDS = 1.0


class PixelBudget:
    """A budget of decoded pixels that threads share. An image larger than the budget is decoded when no other
    is held.
    """

    def __init__(self, pixels: int) -> None:
        self.pixels = pixels
        self.taken = 0
        self._change = threading.Condition()

    def acquire(self, pixels: int) -> None:
        """Wait for room for so many pixels and take it; raises WorkStopped where the deadline comes first."""
        with self._change:
            collected = time.monotonic()
            while not self._fits(pixels):
                check_deadline()
                self._change.wait(_POLL_SECONDS)
                if time.monotonic() - collected > _COLLECT_SECONDS:
                    # An image may hang in a cycle with an error that somebody keeps.
                    gc.collect()
                    collected = time.monotonic()
            self.taken += pixels

    def release(self, pixels: int) -> None:
        """Let others have them."""
        with self._change:
            self.taken -= pixels
            self._change.notify_all()

    def release_with(self, owner: object, pixels: int) -> None:
        """Let others have them when nobody holds ``owner`` any more."""
        weakref.finalize(owner, self.release, pixels).atexit = False

    def _fits(self, pixels: int) -> bool:
        return self.taken == 0 or self.taken + pixels <= self.pixels
