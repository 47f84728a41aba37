"""Images of requests that meet are run together, whatever else each of them asks for.

A backend like any other: only the blocks up to the cut are shared, and what follows is each request's own, so
that requests for different classes, methods and checks meet in one batch. Nobody waits for company: what has
come while the last batch ran is the next one. An image's value does not depend on its neighbours (tested to
the bit), so batching changes no answer.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, TimeoutError as FutureTimeout
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.backends.base import Backend, BackendName, BackendPrecision
from models.cancellation import check_deadline, current_deadline

_GLANCE = 0.05
"""Seconds between two looks at whether a waiting request was cancelled."""


@dataclass(eq=False)
class _PendingForward:
    block: str
    x: Tensor
    result: Future[Tensor] = field(default_factory=Future)

    def fits(self, other: _PendingForward) -> bool:
        return self.block == other.block and self.x.shape[1:] == other.x.shape[1:]


class BatchingBackend:
    """A backend that runs another one in one thread of its own, up to ``most`` images at once.

    ``observe`` is told the size of each batch. Larger requests (masks of RISE, steps of a check) run as they
    come, in turn with the others.
    """

    name: BackendName
    precision: BackendPrecision

    def __init__(self, engine: Backend, *, most: int, observe: Callable[[int], None] | None = None) -> None:
        self.inner, self.model = engine, engine.model
        self.name, self.precision = engine.name, engine.precision
        self._most, self._observe = most, observe
        self._waiting: deque[_PendingForward] = deque()
        self._some = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="lucida-model", daemon=True)
        self._thread.start()

    def until(self, block: str, x: Tensor) -> Tensor:
        """Return the block's value for images (N, 3, H, W); raises WorkStopped when the deadline passes
        meanwhile.
        """
        item = _PendingForward(block, x)
        with self._some:
            if self._closed:
                return self.inner.until(block, x)
            self._waiting.append(item)
            self._some.notify()
        while True:
            try:
                return item.result.result(timeout=_GLANCE if current_deadline() else None)
            except FutureTimeout:
                try:
                    check_deadline()
                except BaseException:
                    item.result.cancel()
                    raise

    def refine_low_margin(self, block: str, x: Tensor, value: Tensor, logits: Tensor) -> Tensor | None:
        """Do as the backend within."""
        return self.inner.refine_low_margin(block, x, value, logits)

    def execution_info(self, block: str, x: Tensor) -> tuple[BackendName, BackendPrecision]:
        """Do as the backend within."""
        return self.inner.execution_info(block, x)

    def close(self) -> None:
        """End the thread when it has done what is waiting; later calls run where they are made."""
        with self._some:
            self._closed = True
            self._some.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._some:
                while not self._waiting and not self._closed:
                    self._some.wait()
                if not self._waiting:
                    return
                batch = self._next()
            self._run([item for item in batch if item.result.set_running_or_notify_cancel()])

    def _next(self) -> list[_PendingForward]:
        """Return the call that has waited longest, and those that fit beside it; the others keep their
        places.
        """
        batch = [self._waiting.popleft()]
        room, waiting = self._most - len(batch[0].x), deque[_PendingForward]()
        while self._waiting:
            item = self._waiting.popleft()
            if item.fits(batch[0]) and len(item.x) <= room:
                batch.append(item)
                room -= len(item.x)
            else:
                waiting.append(item)
        self._waiting = waiting
        return batch

    def _run(self, batch: list[_PendingForward]) -> None:
        if not batch:
            return
        sizes = [len(item.x) for item in batch]
        try:
            if self._observe is not None:
                self._observe(sum(sizes))
            together = batch[0].x if len(batch) == 1 else torch.cat([item.x for item in batch])
            values = torch.split(self.inner.until(batch[0].block, together), sizes)
        except Exception as error:  # whatever it is, it belongs to those who asked
            for item in batch:
                item.result.set_exception(error)
            return
        for item, value in zip(batch, values, strict=True):
            item.result.set_result(value)
