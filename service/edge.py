"""The one place where the outside comes in: an ASGI layer round everything that BentoML routes.

BentoML fetches a text in a file field as a URL, reads bodies without a limit, guesses types of form fields,
writes temporary files under the client's file names, and answers errors in three shapes. Here a posted form
is read under limits, checked, and handed on rebuilt: one file named "image", and text fields that stay text.
Nothing that a client wrote is ever taken for an address, a path or a type.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import answer

_TARGET = ("target", "against", "block")
_HOW = ("method", "flip", "noise")
UPLOADS: dict[str, tuple[str, ...]] = {
    "/predict": (),
    "/explain": (*_TARGET, *_HOW, "top_k", "faithfulness", "overlay"),
    "/heatmap": (*_TARGET, *_HOW, "encoding"),
    "/activations": ("blocks", "channels", "picture"),
    "/trust": (*_TARGET, "method", "checks", "overlay", "picture"),
    "/trace": (*_TARGET, "picture"),
    "/whatif": ("target", "block", "method", "box", "share", "cover", "overlay"),
    "/split": (*_TARGET, "picture"),
}
"""Routes that take a form with the picture in its field ``image``, and the text fields that each takes.

Only these names are written into a rebuilt form: a name of the client's own could close its quotes and
smuggle in a second field ``image`` with a URL as its text.
"""

READ_ONLY = {"/model", "/anatomy", "/filters", "/livez", "/readyz", "/healthz", "/metrics", "/docs.json"}

_MAX_FIELDS = 20
_MAX_FIELD_BYTES = 10_000
_MAX_ERROR_BYTES = 64_000


class Refusal(Exception):
    """A request that goes no further."""

    def __init__(self, status: HTTPStatus, kind: str, message: str) -> None:
        super().__init__(message)
        self.status, self.kind, self.message = status, kind, message


class Edge:
    """ASGI middleware; ``max_body_bytes`` bounds what is read of any request."""

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self.app, self.max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what is sound, rebuilt; answer the rest."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] in {"GET", "HEAD"}:
            await self.app(scope, receive, _one_shape(send))
            return
        try:
            if scope["path"] in READ_ONLY:
                raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "This route takes GET.")
            if scope["path"] not in UPLOADS:
                raise Refusal(HTTPStatus.NOT_FOUND, "not_found", "There is no such route for this method.")
            if scope["method"] != "POST":
                raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", "This route takes POST.")
            body, content_type = await self._rebuilt(scope, receive)
        except Refusal as refusal:
            await answer(refusal.status, refusal.kind, refusal.message)(scope, receive, send)
            return
        await self.app(_with_body(scope, body, content_type), _replay(body, receive), _one_shape(send))

    async def _rebuilt(self, scope: Scope, receive: Receive) -> tuple[bytes, str]:
        headers = Headers(scope=scope)
        if headers.get("content-type", "").split(";")[0].strip().lower() != "multipart/form-data":
            raise Refusal(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type",
                "Send a form (multipart/form-data) with the picture as a file in its field 'image'.",
            )  # fmt: skip
        body = await self._read(headers, receive)
        form = await _parse(headers, body)
        try:
            picture, fields = await _sound(form, UPLOADS[scope["path"]])
        finally:
            await form.close()
        return _encode(picture, fields)

    async def _read(self, headers: Headers, receive: Receive) -> bytes:
        """The whole body, or a Refusal as soon as it is known to be too long."""
        too_long = Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "body_too_large",
            f"The body is over the limit of {self.max_body_bytes:,} bytes.",
        )
        declared = headers.get("content-length", "")
        if (
            declared.isascii()
            and declared.isdigit()
            and (len(declared) > 15 or int(declared) > self.max_body_bytes)
        ):
            raise too_long
        parts: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Refusal(
                    HTTPStatus.BAD_REQUEST, "incomplete_body", "The connection ended before the body did."
                )
            size += len(message.get("body", b""))
            if size > self.max_body_bytes:
                raise too_long
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)


async def _parse(headers: Headers, body: bytes) -> FormData:
    async def chunks() -> Any:
        yield body
        yield b""

    parser = MultiPartParser(
        headers, chunks(), max_files=2, max_fields=_MAX_FIELDS, max_part_size=_MAX_FIELD_BYTES
    )
    try:
        return await parser.parse()
    except (MultiPartException, FormParserError, HTTPException, ValueError, KeyError, LookupError) as error:
        reason = getattr(error, "message", "") or str(error)
        detail = f": {reason[:120].rstrip('.')}" if isinstance(error, MultiPartException) else ""
        raise Refusal(
            HTTPStatus.BAD_REQUEST, "malformed_form", f"The form cannot be read{detail}."
        ) from error


async def _sound(form: FormData, allowed: tuple[str, ...]) -> tuple[bytes, dict[str, str]]:
    """The one picture and the text fields; a text where the picture should be is refused, whatever it
    says.
    """
    pictures = form.getlist("image")
    if not pictures:
        raise Refusal(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "missing_image",
            "The form has no field 'image' with the picture.",
        )
    if len(pictures) > 1:
        raise Refusal(
            HTTPStatus.UNPROCESSABLE_ENTITY,
            "several_images",
            "The form has several fields 'image'; send one.",
        )
    picture = pictures[0]
    if not isinstance(picture, UploadFile):
        raise Refusal(
            HTTPStatus.UNPROCESSABLE_ENTITY, "image_is_text",
            "The field 'image' must be an uploaded file; a text, such as an address, is never fetched.",
        )  # fmt: skip
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "image":
            continue
        if name not in allowed:
            raise Refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY,
                "unknown_field",
                f"There is no such field here; besides 'image' there are: {', '.join(allowed) or 'none'}.",
            )
        if isinstance(value, UploadFile) or name in fields:
            raise Refusal(
                HTTPStatus.UNPROCESSABLE_ENTITY, "bad_field", f"The field {name!r} must be one text."
            )
        if value.strip():
            fields[name] = value.strip()
    return await picture.read(), fields


def _encode(picture: bytes, fields: dict[str, str]) -> tuple[bytes, str]:
    """A form with plain names; BentoML reads each text as JSON, so each is written as a JSON string."""
    boundary = secrets.token_hex(16)
    start = f"--{boundary}\r\nContent-Disposition: form-data; name="
    parts = [f'{start}"{name}"\r\n\r\n{json.dumps(value)}\r\n'.encode() for name, value in fields.items()]
    head = f'{start}"image"; filename="image"\r\nContent-Type: application/octet-stream\r\n\r\n'
    body = b"".join([*parts, head.encode(), picture, f"\r\n--{boundary}--\r\n".encode()])
    return body, f"multipart/form-data; boundary={boundary}"


def _with_body(scope: Scope, body: bytes, content_type: str) -> Scope:
    replaced = {b"content-type", b"content-length", b"transfer-encoding", b"content-encoding"}
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in replaced]
    headers += [(b"content-type", content_type.encode()), (b"content-length", str(len(body)).encode())]
    return {**scope, "headers": headers}


def _replay(body: bytes, receive: Receive) -> Receive:
    """The rebuilt body once, then whatever the connection says."""
    sent = False

    async def replay() -> Message:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def _one_shape(send: Send) -> Send:
    """Rewrite failures that are not in our shape (BentoML's come as lists, tables or bare text) into it."""
    start: Message | None = None
    parts: list[bytes] = []
    answered = False

    async def shaped(message: Message) -> None:
        nonlocal start, answered
        if answered:
            return
        if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
            start = message
            return
        if start is None or message["type"] != "http.response.body":
            await send(message)
            return
        parts.append(message.get("body", b""))
        if message.get("more_body", False) and sum(map(len, parts)) < _MAX_ERROR_BYTES:
            return
        body = _in_shape(start["status"], b"".join(parts))
        kept = [(n, v) for n, v in start["headers"] if n.lower() not in {b"content-length", b"content-type"}]
        headers = [
            *kept,
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        status, answered = _status(start["status"], body), True
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return shaped


def _status(status: int, body: bytes) -> int:
    """BentoML answers 400 to a field of the wrong type; that is 422 everywhere else here."""
    return (
        HTTPStatus.UNPROCESSABLE_ENTITY
        if b'"kind":"bad_field"' in body and status == HTTPStatus.BAD_REQUEST
        else status
    )


def _in_shape(status: int, body: bytes) -> bytes:
    try:
        content = json.loads(body)
    except ValueError:
        content = None
    if isinstance(content, dict) and set(content) == {"error", "kind"}:
        return body
    kind, message = (
        HTTPStatus(status).name.lower(),
        HTTPStatus(status).description or HTTPStatus(status).phrase,
    )
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.SERVICE_UNAVAILABLE:
        kind, message = "internal", "The service failed; the fault is not in the request"
    elif isinstance(content, dict) and isinstance(content.get("detail"), list):
        kind, message = "bad_field", "; ".join(_field_errors(content["detail"]))
    return bytes(answer(status, kind, f"{message.rstrip('.')}.").body)


def _field_errors(details: Iterable[Any]) -> Iterable[str]:
    for item in details:
        if isinstance(item, dict):
            name = ".".join(str(part) for part in item.get("loc", ())) or "form"
            yield f"Field {name!r}: {item.get('msg', 'is not valid')}"
