"""A posted form, read under limits: images as bytes, and text fields that stay text.

This is the only parser that sees what a client posts; BentoML's, which fetches a text in a file field as a
URL and guesses types, never does. Nothing that a client wrote is taken for an address, a path or a type: file
names and part types are thrown away.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect, Request

from service.errors import HTTPError
from service.operations.form import Form

_MAX_FIELDS = 20
_MAX_FIELD_BYTES = 10_000
_CHUNK_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Upload:
    """The images and text fields of one request."""

    images: tuple[bytes, ...] = field(repr=False)
    fields: dict[str, str]


def check_form(request: Request) -> None:
    """Refuse, before anything is read, what is no form."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise HTTPError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type",
            "Send a form (multipart/form-data) with the picture as a file in its field 'image'.",
        )  # fmt: skip


def declared_length(headers: Headers) -> int | None:
    """Return the length of the body, as far as the client says; a number too long to be one counts as
    huge.
    """
    text = headers.get("content-length", "")
    if not (text.isascii() and text.isdigit()):
        return None
    return int(text) if len(text) < 16 else 10**15


async def read_body(
    request: Request, *, most: int, seconds: float, count: Callable[[int], None]
) -> list[bytes]:
    """Read the body in pieces; raises HTTPError as soon as it is known to be too long, or takes too long to
    come. Each piece is passed to ``count``, which may refuse it.
    """
    too_long = HTTPError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "body_too_large",
        f"The body is over the limit of {most:,} bytes.",
    )
    declared = declared_length(request.headers)
    if declared is not None and declared > most:
        raise too_long
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                size += len(chunk)
                if size > most:
                    raise too_long
                count(len(chunk))
                parts.append(chunk)
    except TimeoutError as error:
        raise HTTPError(
            HTTPStatus.REQUEST_TIMEOUT,
            "upload_too_slow",
            f"The body did not come within {seconds:g} seconds.",
        ) from error
    except ClientDisconnect as error:
        raise HTTPError(
            HTTPStatus.BAD_REQUEST, "incomplete_body", "The connection ended before the body did."
        ) from error
    return parts


async def parse_form(
    headers: Headers, body: list[bytes], *, most_images: int, need_image: bool = True
) -> Upload:
    """Parse the images and text fields of a form, whose pieces are used up; a text where an image should be
    is refused, whatever it says.
    """

    async def chunks() -> AsyncIterator[bytes]:
        # Bit by bit: a body made of half delimiters takes the parser a second for each few megabytes, and
        # other requests wait on the same thread.
        body.reverse()
        while body:
            piece = body.pop()
            for start in range(0, len(piece), _CHUNK_BYTES):
                yield piece[start : start + _CHUNK_BYTES]
                await asyncio.sleep(0)
        yield b""

    parser = MultiPartParser(
        headers,
        chunks(),  # type: ignore[arg-type]
        max_files=most_images + 1,
        max_fields=_MAX_FIELDS,
        max_part_size=_MAX_FIELD_BYTES,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, FormParserError, HTTPException, ValueError, KeyError, LookupError) as error:
        reason = getattr(error, "message", "") or str(error)
        detail = f": {reason[:120].rstrip('.')}" if isinstance(error, MultiPartException) else ""
        raise HTTPError(
            HTTPStatus.BAD_REQUEST, "malformed_form", f"The form cannot be read{detail}."
        ) from error
    try:
        images = await _read_images(form, most_images, need_image)
        return Upload(images, _fields(form))
    finally:
        await form.close()


async def _read_images(form: FormData, most: int, needed: bool) -> tuple[bytes, ...]:
    values = form.getlist("image")
    if needed and not values:
        raise _unprocessable("missing_image", "The form has no field 'image' with the picture.")
    if len(values) > most:
        rule = "send one" if most == 1 else f"at most {most} are allowed"
        raise _unprocessable("several_images", f"The form has {len(values)} fields 'image'; {rule}.")
    read: list[bytes] = []
    for image in values:
        if not isinstance(image, UploadFile):
            raise _unprocessable(
                "image_is_text",
                "The field 'image' must be an uploaded file; a text, such as an address, is never fetched.",
            )
        read.append(await image.read())
    return tuple(read)


def _fields(form: FormData) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "image":
            continue
        if isinstance(value, UploadFile) or name in fields:
            raise _unprocessable("bad_field", f"The field {name[:80]!r} must be one text.")
        fields[name] = value.strip()
    return fields


def validate_form(kind: type[Form], fields: dict[str, str]) -> Form:
    """Validate the text fields as a form of that kind; a name or list that is empty counts as not given.

    Raises HTTPError, whose message names each field that is unknown or of the wrong type.
    """
    unknown = sorted(set(fields) - set(kind.model_fields))
    if unknown:
        raise _unprocessable(
            "unknown_field",
            f"There is no field {unknown[0][:80]!r} here; besides 'image' there are: "
            f"{', '.join(kind.model_fields)}.",
        )
    try:
        texts = {name for name, field in kind.model_fields.items() if field.default in (None, "")}
        present = {name: value for name, value in fields.items() if value or name not in texts}
        return kind.model_validate(present)
    except ValidationError as error:
        message = "; ".join(
            f"Field {'.'.join(map(str, item['loc'])) or 'form'!r}: {item['msg']}" for item in error.errors()
        )
        raise _unprocessable("bad_field", f"{message}.") from error


def _unprocessable(kind: str, message: str) -> HTTPError:
    return HTTPError(HTTPStatus.UNPROCESSABLE_ENTITY, kind, message)
