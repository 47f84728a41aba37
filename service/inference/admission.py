"""Who is let in, who waits, who is sent away at once, and when the work on a request ends.

Work runs in a few threads; a bounded number of images waits for them, and whoever comes beyond that is told
within milliseconds when to come again. Each piece of work has a deadline that its loops look at; if it does
not come back in time, or the client hangs up, the answer does not wait for it and its place stays
taken until the thread has really ended, so that abandoned work cannot pile up.
"""

from __future__ import annotations

import asyncio
import math
import time
import traceback
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TypeVar

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request

from models.cancellation import Deadline, deadline_scope
from models.errors import DeadlineExceeded
from models.host_memory import return_freed_memory
from service.errors import HTTPError
from service.settings import Settings

T = TypeVar("T")

GRACE_SECONDS = 0.4
"""Seconds after the deadline in which what has been found so far may still become an answer."""
_BLEND = 0.1
_IDLE_SECONDS = 1.0
_BUSY_SECONDS = 2.0


class AdmissionControl:
    """Admission control of one worker process: places at work, places in the queue, and bytes of uploads."""

    def __init__(self, settings: Settings, observe: Callable[[int], None] | None = None) -> None:
        self.threads = settings.request_threads
        self.room = settings.request_threads + settings.max_queue
        self.max_reserved = settings.max_uploads_bytes
        self._observe = observe or (lambda places: None)
        self.places = 0
        """Images at work or waiting."""
        self.reserved = 0
        """Bytes of the uploads behind them, and of those that are still coming in."""
        self._limiter: CapacityLimiter | None = None
        self._seconds = 0.1
        self._trimming = False
        self._trimmed = time.monotonic()
        self._abandoned: set[asyncio.Task[object]] = set()

    def check_room(self, images: int = 1) -> None:
        """Raise HTTPError (503 with Retry-After) when so many more would wait too long."""
        if self.places + images > self.room:
            raise self.busy(f"{self.places} pictures are being worked on or waiting already")

    def reserve(self) -> UploadReservation:
        """Return a context that reserves memory for an upload as its bytes come in."""
        return UploadReservation(self)

    async def run(
        self,
        request: Request,
        deadline: Deadline,
        work: Sequence[Callable[[], T]],
        *,
        late: Callable[[DeadlineExceeded], T] | None = None,
    ) -> list[T]:
        """Run pieces of work for one request, each in a thread; return their results.

        ``late`` makes what stands in the place of one that did not end in time while others did; without it
        they all come to nothing. Raises HTTPError when there is no room or none was begun in time, and
        DeadlineExceeded when none ended in time; what the work raises is raised here.
        """
        self.check_room(len(work))
        left = deadline.remaining
        # What is at work in another thread is not in the way.
        ahead = max(self.places + 1 - self.threads, 0)
        if left is not None and ahead * self._seconds / self.threads > max(left, 0.0):
            raise self.busy("the request would wait longer than its deadline")
        begun: list[bool] = []
        # Counted now and not when they begin: all that is ready in one turn of the loop is let in together.
        self._move(len(work))
        watcher = asyncio.create_task(_cancel_on_hang_up(request, deadline))
        tasks = [asyncio.create_task(self._one(piece, deadline, begun)) for piece in work]
        try:
            done, running = await asyncio.wait(
                tasks, timeout=None if left is None else max(left, 0.0) + GRACE_SECONDS
            )
            if running:
                deadline.cancel()
                if not begun:
                    raise self.busy("the request waited longer than its deadline")
                if late is None or not done:
                    raise _too_late(deadline)
            return [_result(task, deadline, late) for task in tasks]
        finally:
            watcher.cancel()
            for task in tasks:
                if not task.done():
                    self._abandoned.add(task)
                    task.add_done_callback(self._forget)
                elif not task.cancelled():
                    task.exception()

    async def _one(self, work: Callable[[], T], deadline: Deadline, begun: list[bool]) -> T:
        if self._limiter is None:
            self._limiter = CapacityLimiter(self.threads)
        try:
            return await to_thread.run_sync(lambda: self._timed(work, deadline, begun), limiter=self._limiter)
        finally:
            self._move(-1)

    def _move(self, images: int) -> None:
        self.places += images
        self._observe(self.places)
        if self.places == 0 and not self._trimming:
            self._trimming = True
            asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._trim)

    def _trim(self) -> None:
        """Give memory back that large images have left in pieces, once there is a quiet moment."""
        self._trimming = False
        if self.places == 0:
            return_freed_memory()

    def _trim_when_due(self) -> None:
        """Give memory back every few seconds where no moment is quiet; called in a thread that works."""
        now = time.monotonic()
        if now - self._trimmed > _BUSY_SECONDS:
            self._trimmed = now
            return_freed_memory()

    def _timed(self, work: Callable[[], T], deadline: Deadline, begun: list[bool]) -> T:
        left = deadline.remaining
        if left is not None and left <= 0:
            if begun:
                raise _too_late(deadline)
            raise self.busy("the request waited longer than its deadline")
        begun.append(True)
        start = time.perf_counter()
        try:
            with deadline_scope(deadline):
                return work()
        except BaseException as error:
            _clear_frames(error)
            raise
        finally:
            took = time.perf_counter() - start
            self._seconds += _BLEND * (took - self._seconds)
            self._trim_when_due()

    def busy(self, why: str) -> HTTPError:
        """Return a 503 with Retry-After, as long as what is waiting now will take."""
        wait = max(1, math.ceil(self.places * self._seconds / self.threads))
        return HTTPError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "busy",
            f"The service is busy: {why}. Come again in {wait} s.",
            {"Retry-After": str(wait)},
        )

    def _forget(self, task: asyncio.Task[object]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()


def _result(task: asyncio.Task[T], deadline: Deadline, late: Callable[[DeadlineExceeded], T] | None) -> T:
    try:
        if not task.done():
            raise _too_late(deadline)
        return task.result()
    except DeadlineExceeded as error:
        if late is None:
            raise
        return late(error)


def _too_late(deadline: Deadline) -> DeadlineExceeded:
    return DeadlineExceeded(f"The work did not end within its {deadline.seconds:g} seconds.")


def _clear_frames(error: BaseException) -> None:
    """Have an error forget what its frames, and those of the errors behind it, held.

    It goes from the thread to a task and hangs there in a cycle until the garbage collector comes by; a
    decoder's frame would keep all pixels of the image that it could not read for as long.
    """
    seen: set[int] = set()
    behind: list[BaseException | None] = [error]
    while behind:
        current = behind.pop()
        if current is not None and id(current) not in seen:
            seen.add(id(current))
            traceback.clear_frames(current.__traceback__)
            behind += [current.__cause__, current.__context__]


class UploadReservation:
    """Memory kept for an upload while the block runs."""

    def __init__(self, admission: AdmissionControl) -> None:
        self._admission, self._size = admission, 0

    def add(self, size: int) -> None:
        """Reserve so many more bytes; raises HTTPError when there is no room for them."""
        if self._admission.reserved + size > self._admission.max_reserved:
            raise self._admission.busy(
                f"uploads of {self._admission.reserved:,} bytes are being worked on already"
            )
        self._admission.reserved += size
        self._size += size

    def __enter__(self) -> UploadReservation:
        return self

    def __exit__(self, *_: object) -> None:
        self._admission.reserved -= self._size


async def _cancel_on_hang_up(request: Request, deadline: Deadline) -> None:
    """Wait for the client to go away, then have the work stop."""
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            deadline.cancel()
            return
