"""Connections of a worker: closed when they are slow, idle or too many, and none while a request is coming.

uvicorn waits for ever for a first request and for the rest of its header, so that some hundred silent
connections take all the files that a process may open. And it closes a connection whose time has come
without a look at what has arrived on it since, so that a request is lost now and then.
"""

from __future__ import annotations

import asyncio
import select
from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from service.settings import Settings

_AGAIN_SECONDS = 0.05
"""How soon to look again at a connection with something to read."""


def limit_connections(settings: Settings) -> None:
    """Have uvicorn, in this process, hold connections by the limits of the settings.

    BentoML passes no protocol of ours on to uvicorn, which takes the one named "auto".
    """
    limits = {
        "header_seconds": settings.header_seconds,
        "keep_alive_seconds": settings.keep_alive_seconds,
        "most_idle": settings.max_idle_connections,
        "waiting": {},
    }
    HTTP_PROTOCOLS["auto"] = type("LimitedHTTPProtocol", (LimitedProtocol,), limits)  # type: ignore[assignment]


class LimitedProtocol(AutoHTTPProtocol):  # type: ignore[valid-type, misc]
    """uvicorn's connection with a limit of time for the header of a request, and of the number of those that
    wait for one.
    """

    header_seconds: float
    keep_alive_seconds: float
    most_idle: int
    waiting: dict[LimitedProtocol, None]
    """Connections without a request, those that have waited longest first; one for the process."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.timeout_keep_alive = self.keep_alive_seconds
        self._header_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Begin to wait for a request; whoever has waited longest goes where there are too many."""
        super().connection_made(transport)
        self.waiting[self] = None
        self._expect_header()
        for other in list(self.waiting)[: len(self.waiting) - self.most_idle]:
            if not other._has_data():
                other.transport.close()

    def data_received(self, data: bytes) -> None:
        """Take what has come; the first of a header starts its time, and the last of it ends that."""
        super().data_received(data)
        self._follow()

    def on_response_complete(self) -> None:
        """Begin to wait for the next request."""
        super().on_response_complete()
        self._follow()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        super().connection_lost(exc)
        self.waiting.pop(self, None)
        self._expect_no_header()

    def timeout_keep_alive_handler(self) -> None:
        """Close the connection after its time, unless a request has come that was not read yet."""
        if self._has_data():
            self.timeout_keep_alive_task = self.loop.call_later(
                _AGAIN_SECONDS, self.timeout_keep_alive_handler
            )
        else:
            super().timeout_keep_alive_handler()

    def shutdown(self) -> None:
        """Close the connection when the server ends, after the request that is under way or has come."""
        if not self._answering() and self._has_data() and not self.transport.is_closing():
            self.loop.call_later(_AGAIN_SECONDS, self.shutdown)
        else:
            super().shutdown()

    def _follow(self) -> None:
        if self._answering() or self.transport.is_closing():
            self.waiting.pop(self, None)
            self._expect_no_header()
        elif self.timeout_keep_alive_task is None:
            # Neither a request nor the time between two: a header has begun.
            self._expect_header()
        else:
            self.waiting[self] = None

    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_header(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self.header_seconds, self._end_header)

    def _expect_no_header(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _end_header(self) -> None:
        self._header_timer = None
        if not self._answering():
            self.transport.close()

    def _has_data(self) -> bool:
        """Return whether something has come that was not read yet, be it the other side's end."""
        poll = select.poll()
        try:
            poll.register(self.transport.get_extra_info("socket").fileno(), select.POLLIN)
            return bool(poll.poll(0))
        except (AttributeError, OSError, ValueError):
            # Closed already.
            return False
