"""A posted form, read under limits: images as bytes, and text fields that stay text.

This is the only parser that sees what a client posts; BentoML's, which fetches a text in a file field as a
URL and guesses types, never does. Nothing that a client wrote is taken for an address, a path or a type: file
names and part types are thrown away.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from pydantic import ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect, Request

from service.errors import HTTPError
from service.operations.form import Form

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_FIELDS = 20
_MAX_FIELD_BYTES = 10_000
_MAX_HEADER_BYTES = 65_536
"""Of a part: a file name may be long, and is not used."""
_CHUNK_BYTES = 65_536
_BENTOML_CLIENT = "BentoML HTTP Client"
"""How the user agent of bentoml.SyncHTTPClient and AsyncHTTPClient begins."""


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
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise HTTPError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "unsupported_encoding",
            f"The body is compressed ({encoding[:40]!r} in Content-Encoding); send the form as it is.",
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
    _, options = parse_options_header(headers.get("content-type"))
    reader = _PartReader(most_files=most_images + 1)
    try:
        parser = MultipartParser(
            options.get(b"boundary", b""), reader.callbacks(), max_header_size=_MAX_HEADER_BYTES
        )
        # Bit by bit: a body made of half delimiters takes the parser a second for each few megabytes, and
        # other requests wait on the same thread.
        body.reverse()
        while body:
            piece = body.pop()
            for start in range(0, len(piece), _CHUNK_BYTES):
                parser.write(piece[start : start + _CHUNK_BYTES])
                await asyncio.sleep(0)
        parser.finalize()
    except (FormParserError, ValueError, LookupError) as error:
        reason = str(error).split("\n")[0].rstrip(".")[:120] or "it has no boundary"
        raise _malformed(reason) from error
    return Upload(_images(reader, most_images, need_image), _fields(reader, headers))


class _PartReader:
    """A collector of what the parser finds: files and texts, each with the name of its field.

    A part is a file when its header gives a file name, in whatever way; the name itself is thrown away.
    """

    def __init__(self, *, most_files: int) -> None:
        self.files: list[tuple[str, bytes]] = []
        self.texts: list[tuple[str, str]] = []
        self._most_files = most_files
        self._header, self._value = bytearray(), bytearray()
        self._disposition, self._name, self._is_file = b"", "", False
        self._data = bytearray()

    def callbacks(self) -> MultipartCallbacks:
        """Return what the parser calls."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add,
            "on_part_end": self._end,
        }

    def _begin(self) -> None:
        self._disposition, self._data = b"", bytearray()

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _end_headers(self) -> None:
        _, options = parse_options_header(self._disposition)
        if b"name" not in options:
            raise _malformed("a part has no name in its Content-Disposition")
        self._name = options[b"name"].decode(errors="replace")
        # filename* and filename*0 are of names that are not plain, or are long (RFC 2231, 5987).
        self._is_file = b"filename" in options or b"filename*" in self._disposition.lower()
        if self._is_file and len(self.files) >= self._most_files:
            raise _unprocessable("several_images", f"The form has more than {self._most_files - 1} files.")
        if not self._is_file and len(self.texts) >= _MAX_FIELDS:
            raise _malformed(f"it has more than {_MAX_FIELDS} text fields")

    def _add(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]
        if not self._is_file and len(self._data) > _MAX_FIELD_BYTES:
            raise _malformed(
                f"the text field {self._name[:80]!r} has more than {_MAX_FIELD_BYTES:,} bytes; the part of a "
                "picture needs a file name, as `curl -F image=@FILE` gives it"
            )

    def _end(self) -> None:
        if self._is_file:
            self.files.append((self._name, bytes(self._data)))
        else:
            self.texts.append((self._name, self._data.decode(errors="replace")))


def _images(reader: _PartReader, most: int, needed: bool) -> tuple[bytes, ...]:
    images = tuple(data for name, data in reader.files if name == "image")
    if any(name == "image" for name, _ in reader.texts):
        raise _unprocessable(
            "image_is_text",
            "The field 'image' must be an uploaded file, whose part has a file name; a text, such as an "
            "address, is never fetched.",
        )
    if needed and not images:
        raise _unprocessable("missing_image", "The form has no field 'image' with the picture.")
    if len(images) > most:
        rule = "send one" if most == 1 else f"at most {most} are allowed"
        raise _unprocessable("several_images", f"The form has {len(images)} fields 'image'; {rule}.")
    return images


def _fields(reader: _PartReader, headers: Headers) -> dict[str, str]:
    """Return the text fields; those of BentoML's own client are JSON texts."""
    fields: dict[str, str] = {}
    twice = [name for name, _ in reader.files if name != "image"]
    for name, value in reader.texts:
        if name in fields:
            twice.append(name)
        fields[name] = value.strip()
    if twice:
        raise _unprocessable("bad_field", f"The field {twice[0][:80]!r} must be one text.")
    if headers.get("user-agent", "").startswith(_BENTOML_CLIENT):
        fields = {name: _unquote(value) for name, value in fields.items()}
    return fields


def _unquote(text: str) -> str:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return "" if value is None else value if isinstance(value, str) else text


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


def _malformed(reason: str) -> HTTPError:
    return HTTPError(HTTPStatus.BAD_REQUEST, "malformed_form", f"The form cannot be read: {reason}.")


def _unprocessable(kind: str, message: str) -> HTTPError:
    return HTTPError(HTTPStatus.UNPROCESSABLE_ENTITY, kind, message)
