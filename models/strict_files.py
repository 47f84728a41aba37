"""Files that somebody else may have made, read under limits: regular files of a bounded size, and JSON of
plain text, finite numbers and a bounded depth.

What passes here can be written as JSON again, shown on a page and put into a metric's label; what does not is
refused by file, place and reason before anything is made of it.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from models.errors import BundleError

_MAX_DEPTH = 32
_MAX_TEXT = 1_000_000
"""Characters of one string."""
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Control characters but tab and line feed."""


def read_file(path: Path, *, most: int) -> bytes:
    """Return the bytes of a regular file, at most ``most``; links are followed.

    Raises BundleError for a file that is missing, larger, or no file: a FIFO or a device might never end.
    """
    try:
        # Not to wait for a writer, should it be a FIFO.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise BundleError(f"The bundle has no readable file {path.name}.") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path.name} is not a regular file.")
        if status.st_size > most:
            raise BundleError(f"{path.name} has {status.st_size:,} bytes; the limit is {most:,}.")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(most + 1)
    except OSError as error:
        raise BundleError(f"The bundle has no readable file {path.name}.") from error
    finally:
        os.close(descriptor)
    if len(data) > most:
        raise BundleError(f"{path.name} has more than {most:,} bytes, which is the limit.")
    return data


def parse_json(data: bytes, name: str) -> Any:
    """Return the value of a JSON file; ``name`` is the file's, for errors.

    Raises BundleError for what is no JSON, has NaN, infinities or numbers beyond a float, strings with
    surrogates or control characters, or is nested more than 32 deep.
    """
    try:
        value = json.loads(data.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError as error:
        raise BundleError(f"{name} is nested more than {_MAX_DEPTH} deep.") from error
    except ValueError as error:
        raise BundleError(f"{name} is not JSON; it was altered or cut off: {error}.") from error
    for place, item in _walk(value, name):
        if isinstance(item, str):
            _check_text(item, place)
        elif isinstance(item, int | float) and not _is_finite(item):
            raise BundleError(f"{place} is beyond what a float can hold.")
    return value


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(float(number))
    except OverflowError:
        return False


def _check_text(text: str, place: str) -> None:
    if len(text) > _MAX_TEXT:
        raise BundleError(f"{place} has {len(text):,} characters; the limit is {_MAX_TEXT:,}.")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BundleError(f"{place} has a character that is half of one (a surrogate).") from error
    if _CONTROL.search(text):
        raise BundleError(f"{place} has a control character.")


def _walk(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, value) of every key and every value, without recursion."""
    stack: list[tuple[str, Any, int]] = [(name, value, 0)]
    while stack:
        place, item, depth = stack.pop()
        if depth > _MAX_DEPTH:
            raise BundleError(f"{name} is nested more than {_MAX_DEPTH} deep.")
        if isinstance(item, dict):
            for key, inner in item.items():
                yield f"A name in {place}", key
                stack.append((f"{place}: {key[:40]!a}", inner, depth + 1))
        elif isinstance(item, list):
            stack += [(place, inner, depth + 1) for inner in item]
        else:
            yield place, item
