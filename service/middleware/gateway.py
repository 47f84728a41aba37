"""The one place where the outside comes in: an ASGI layer round everything that BentoML routes.

It lets through the routes that we know and no other of BentoML's, asks for a key where there are keys, gives
each request an id, writes one line about it, counts it, and sends clients on to idler workers. It sees to it
that every failure, whoever made it, has one shape: one sentence in JSON, without a traceback, a path or an
address.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import secrets
import time
from http import HTTPStatus
from typing import Any, Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import INTERNAL_MESSAGE, HTTPError
from service.metrics import Metrics
from service.middleware.auth import ApiKeys, read_key
from service.middleware.connection_balance import ConnectionBalance
from service.middleware.hosts import check_host
from service.middleware.rate_limit import RateLimit
from service.settings import Settings
from service.tracing import request_span

log = logging.getLogger("lucida.requests")

PROBES = ("/v2/health/live", "/v2/health/ready")
OPEN_ROUTES = ("/livez", "/readyz", *PROBES)
"""Answered without a key."""
BENTOML_ROUTES = ("/livez", "/readyz", "/healthz")
"""Of BentoML's own routes those that are let through."""
OWN_ROUTES = ("/schema.json",)
"""Ours, which BentoML has as well and would answer first."""

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_QUIET = (*BENTOML_ROUTES, *PROBES, "/metrics")
"""Asked every few seconds by machines; not logged."""
_MAX_ERROR_BYTES = 64_000
_DRAIN_BYTES = 500_000
_DRAIN_SECONDS = 1.0
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self'; "
    "script-src 'self'; connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
}


class GatewayState(Protocol):
    """The part of the application that the gateway reads; attributes are None until it has started."""

    settings: Settings
    keys: ApiKeys
    rate_limit: RateLimit | None
    balance: ConnectionBalance | None
    metrics: Metrics | None

    def route_name(self, path: str) -> str | None:
        """Return the name under which a path is counted; None for one that is not ours."""
        ...

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request by our own routes."""
        ...


class Gateway:
    """An ASGI middleware round the application."""

    def __init__(self, app: ASGIApp, *, state: GatewayState) -> None:
        self.app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let through what is known and allowed; answer the rest."""
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await self.app(scope, receive, send)
            return
        answer = _ResponseFilter(scope, receive, send, self._state.balance)
        _strip_root_path(scope, self._state.settings.root_path)
        route = self._state.route_name(scope["path"])
        if route in _QUIET:
            await self._answer(scope, route, answer)
            return
        with request_span(scope["method"], route, Headers(scope=scope)) as end_span:
            try:
                await self._answer(scope, route, answer)
            finally:
                end_span(answer.status, answer.id)

    async def _answer(self, scope: Scope, route: str | None, answer: _ResponseFilter) -> None:
        """Answer what is known and allowed, refuse the rest, and tell about it."""
        owner: str | None = None
        try:
            owner = self._owner(scope)
            if route is None:
                raise HTTPError(HTTPStatus.NOT_FOUND, "not_found", "There is no such route.")
            scope.setdefault("state", {})["owner"] = owner
            app = self._state if route in OWN_ROUTES else self.app
            await app(scope, answer.receive, answer.send)
        except HTTPError as refusal:
            await refusal.response()(scope, answer.receive, answer.send)
        except Exception:
            # Whatever went wrong is ours; the id leads from the answer to this line.
            log.exception("request %s failed", answer.id)
            if not answer.begun:
                failed = HTTPError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", INTERNAL_MESSAGE)
                await failed.response()(scope, answer.receive, answer.send)
        finally:
            self._tell(scope, route, answer, owner)

    def _owner(self, scope: Scope) -> str | None:
        """Return whose key the request brings; raises HTTPError where it should bring one, or brings it too
        often.
        """
        headers = Headers(scope=scope)
        if scope["method"] not in {"GET", "HEAD"} and _is_cross_site(headers):
            raise HTTPError(
                HTTPStatus.FORBIDDEN, "cross_site", "A page of another site may not ask in a reader's name."
            )
        if scope["path"] in OPEN_ROUTES:
            return None
        if not self._state.keys.names:
            check_host(headers.get("host", ""), self._state.settings.allowed_hosts)
            return None
        owner = self._state.keys.owner(read_key(headers))
        if owner is None:
            raise HTTPError(
                HTTPStatus.UNAUTHORIZED, "no_key",
                "Send an API key, as 'Authorization: Bearer KEY' or as 'X-API-Key: KEY'.",
                {"WWW-Authenticate": 'Basic realm="Camera Lucida: any name, the API key as password"'},
            )  # fmt: skip
        rate_limit = self._state.rate_limit
        wait = rate_limit.wait(owner) if rate_limit is not None else 0.0
        if wait > 0:
            seconds = max(1, math.ceil(wait))
            raise HTTPError(
                HTTPStatus.TOO_MANY_REQUESTS, "too_many_requests",
                f"This key has used up its requests for the moment; come again in {seconds} s.",
                {"Retry-After": str(seconds)},
            )  # fmt: skip
        return owner

    def _tell(self, scope: Scope, route: str | None, answer: _ResponseFilter, owner: str | None) -> None:
        seconds, status = time.perf_counter() - answer.start, answer.status
        length = Headers(scope=scope).get("content-length", "")
        received = int(length) if length.isascii() and length.isdigit() and len(length) < 13 else 0
        if self._state.metrics is not None:
            self._state.metrics.count(route or "unknown", status, seconds, received)
        if self._state.settings.log_requests and route not in _QUIET:
            line: dict[str, Any] = {
                "time": round(time.time(), 3),
                "id": answer.id,
                "method": scope["method"],
                "route": route,
                "status": status,
                "ms": round(seconds * 1000, 1),
                "received": received,
                "sent": answer.sent,
                "key": owner,
            }
            log.info(json.dumps(line))


class _ResponseFilter:
    """A filter of one response: it sets headers, and gives failures one shape.

    BentoML's and Starlette's failures come as lists, tables or bare text, and are rewritten.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, balance: ConnectionBalance | None) -> None:
        request_id = Headers(scope=scope).get("x-request-id", "")
        self.id = request_id if _ID.fullmatch(request_id) else secrets.token_hex(8)
        self.start = time.perf_counter()
        self.status, self.sent, self.begun = 0, 0, False
        self._receive, self._send, self._balance = receive, send, balance
        self._read = scope["method"] in {"GET", "HEAD"}
        """Whether the body has come to its end."""
        self._posted = scope["method"] == "POST"
        self._failure: Message | None = None
        self._parts: list[bytes] = []

    async def receive(self) -> Message:
        """Receive one message, as an ASGI server has it."""
        message = await self._receive()
        self._read = self._read or not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """Send one message, as an ASGI server takes it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.begun = True
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            if self.status >= HTTPStatus.BAD_REQUEST:
                self._failure = message
                return
            if self._posted and self._balance is not None and self._balance.should_close():
                headers["connection"] = "close"
            await self._send(message)
        elif message["type"] != "http.response.body":
            await self._send(message)
        elif self._failure is None:
            self.sent += len(message.get("body", b""))
            await self._send(message)
        elif self._parts is not None:
            await self._fail(message)

    async def _fail(self, message: Message) -> None:
        """Collect a failure's body, and send it in our shape when it is whole."""
        assert self._failure is not None
        self._parts.append(message.get("body", b""))
        if message.get("more_body", False) and sum(map(len, self._parts)) < _MAX_ERROR_BYTES:
            return
        start, body = self._failure, b"".join(self._parts)
        headers = MutableHeaders(raw=list(start["headers"]))
        body = _normalize_error(self.status, body, headers)
        headers["content-type"] = "application/json"
        headers["content-length"] = str(len(body))
        self.sent = len(body)
        if not self._read:
            # The rest of a body that was refused is neither read nor taken for the next request.
            headers["connection"] = "close"
        await self._send({"type": "http.response.start", "status": self.status, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": body, "more_body": True})
        if not self._read:
            await self._drain()
        await self._send({"type": "http.response.body", "body": b""})
        self._failure, self._parts = None, []
        self._send = _discard

    async def _drain(self) -> None:
        """Read a little of what is still coming, so that a client which is sending it comes to read the
        answer instead of finding the line cut.
        """
        read = 0
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                while read < _DRAIN_BYTES and not self._read:
                    read += len((await self.receive()).get("body", b""))
        except TimeoutError:
            return


def _is_cross_site(headers: Headers) -> bool:
    """Return whether a browser sends the request on behalf of another site's page.

    It says so itself where the address is https or this machine; elsewhere it only names the page's origin.
    """
    fetch_site = headers.get("sec-fetch-site")
    origin = headers.get("origin")
    if fetch_site is not None or origin is None:
        return fetch_site == "cross-site"
    # A proxy may have put its own name for us in the place of the one that the browser knows. What is no
    # address at all, as "null", is nobody's.
    ours = {headers.get("host", "").lower(), headers.get("x-forwarded-host", "").lower()}
    return origin.rpartition("://")[2].lower() not in ours - {""}


def _strip_root_path(scope: Scope, root_path: str) -> None:
    """Take off the proxy's path, where the proxy has left it on."""
    if root_path and f"{scope['path']}/".startswith(f"{root_path}/"):
        scope["path"] = scope["path"][len(root_path) :] or "/"
        scope["raw_path"] = scope["path"].encode()


def _normalize_error(status: int, body: bytes, headers: Headers) -> bytes:
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict) and {"error", "kind"} == set(content):
        return body
    http_status = HTTPStatus(status)
    message = http_status.description or http_status.phrase
    if "allow" in headers:
        message = f"This route answers to {headers['allow']} only"
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE:
        return bytes(HTTPError(http_status, "internal", INTERNAL_MESSAGE).response().body)
    return bytes(HTTPError(http_status, http_status.name.lower(), f"{message.rstrip('.')}.").response().body)


async def _discard(message: Message) -> None:
    """Discard what a failed application sends after its answer was sent."""
