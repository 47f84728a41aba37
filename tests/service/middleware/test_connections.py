"""Connections: closed when slow, idle or too many, and none while a request is on its way."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest
import uvicorn
from uvicorn.config import HTTP_PROTOCOLS

from service.middleware.auth import ApiKeys
from service.middleware.connections import limit_connections
from service.middleware.gateway import Gateway
from service.settings import Settings
from tests.support.serving import free_port


@pytest.fixture(scope="module")
def strict(start, bundle_folder):
    return start(
        bundle_folder, max_jobs="0", header_seconds="1", keep_alive_seconds="1",
        max_idle_connections="30",
    )  # fmt: skip


def connect(served) -> socket.socket:
    address = httpx.URL(served.url)
    return socket.create_connection((address.host, address.port), timeout=10)


def seconds_until_closed(line: socket.socket) -> float:
    began = time.monotonic()
    with contextlib.suppress(ConnectionResetError):
        while line.recv(65536):
            pass
    return time.monotonic() - began


@pytest.mark.parametrize(
    "sent",
    [b"", b"GET /liv", b"GET /livez HTTP/1.1\r\nHost: localhost\r\n"],
    ids=["nothing", "half a line", "half a header"],
)
def test_a_connection_without_a_whole_header_is_closed_after_its_time(strict, sent):
    with connect(strict) as line:
        line.sendall(sent)
        assert 0.5 < seconds_until_closed(line) < 5


def test_a_header_that_trickles_has_the_same_time(strict):
    with connect(strict) as line:
        began = time.monotonic()
        with contextlib.suppress(OSError):
            for letter in b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"y" * 100:
                line.send(bytes([letter]))
                time.sleep(0.1)
        assert time.monotonic() - began < 5


def test_a_second_header_has_its_own_time_and_the_wait_between_two_requests_too(strict):
    whole = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"
    for more in (b"", b"GET /"):
        with connect(strict) as line:
            line.sendall(whole)
            assert line.recv(65536).startswith(b"HTTP/1.1 200")
            line.sendall(more)
            assert 0.5 < seconds_until_closed(line) < 5


def test_hundreds_of_silent_connections_keep_nobody_away(strict):
    (worker,) = strict.workers()
    with contextlib.ExitStack() as lines:
        for _ in range(300):
            lines.enter_context(connect(strict))
        time.sleep(0.2)
        assert sum(line.status == psutil.CONN_ESTABLISHED for line in worker.net_connections("tcp")) <= 31
        assert strict.get("/livez").status_code == 200
    assert strict.get("/model").status_code == 200


@contextlib.contextmanager
def running(app, monkeypatch, **settings: float) -> Iterator[int]:
    """The port of a uvicorn in a thread, with our connections and uvloop, as BentoML's workers have it."""
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])
    limit_connections(Settings(**settings))
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_level="critical", loop="uvloop", lifespan="off")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield port
    finally:
        server.should_exit = True
        thread.join(10)


async def answer(scope, receive, send) -> None:
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.mark.parametrize("end", ["timeout_keep_alive_handler", "shutdown"])
def test_a_request_that_has_come_is_answered_though_its_connection_is_to_be_closed(monkeypatch, end):
    """The event loop is held until the request has arrived, and then told to end the connection."""
    with running(answer, monkeypatch) as port:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        line.request("GET", "/")
        line.getresponse().read()
        (connection,) = HTTP_PROTOCOLS["auto"].waiting
        held = threading.Event()

        def end_it() -> None:
            held.set()
            time.sleep(0.3)
            getattr(connection, end)()

        connection.loop.call_soon_threadsafe(end_it)
        held.wait()
        # Without a second connection, which http.client would open for a new request.
        line.auto_open = 0
        line.request("GET", "/")
        assert line.getresponse().read() == b"ok"


class Fickle:
    """A state of the gateway whose balance sends every third client away."""

    settings, keys, rate_limit, metrics = Settings(log_requests=False), ApiKeys({}), None, None
    asked = 0

    @property
    def balance(self) -> Fickle:
        return self

    def should_close(self) -> bool:
        self.asked += 1
        return self.asked % 3 == 0

    def route_name(self, path: str) -> str:
        return path


@pytest.mark.parametrize("requests", [2_000, pytest.param(30_000, marks=pytest.mark.soak)])
def test_no_request_is_lost_while_connections_are_being_closed(monkeypatch, requests):
    app = Gateway(answer, state=Fickle())

    def ask(port: int, count: int) -> int:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for _ in range(count):
            line.request("POST", "/", body=b"x" * 1000)
            answered = line.getresponse()
            assert (answered.status, answered.read()) == (200, b"ok")
        return count

    with running(app, monkeypatch) as port, ThreadPoolExecutor(8) as pool:
        done = list(pool.map(ask, [port] * 8, [requests // 8] * 8))
    assert sum(done) == requests
