"""Each of our errors as an HTTP answer: a status, a kind for programs, one sentence for people."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from http import HTTPStatus
from typing import ParamSpec, TypeVar

from starlette.responses import JSONResponse, Response

from models import errors
from service.schemas import ErrorAnswer

P = ParamSpec("P")
R = TypeVar("R")

STATUS: dict[type[errors.LucidaError], HTTPStatus] = {
    errors.UnsupportedFormat: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    errors.ImageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    errors.UnreadableImage: HTTPStatus.BAD_REQUEST,
    errors.ImageError: HTTPStatus.BAD_REQUEST,
    errors.UnknownChoice: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ExplanationError: HTTPStatus.UNPROCESSABLE_ENTITY,
    errors.ConfigError: HTTPStatus.UNPROCESSABLE_ENTITY,
}
"""What a client can cause. Anything else is the service's own fault: 500."""


def answer(status: int, kind: str, message: str) -> JSONResponse:
    """The one shape of every failure."""
    return JSONResponse(ErrorAnswer(error=message, kind=kind).model_dump(), status_code=status)


def answer_to(error: errors.LucidaError) -> JSONResponse:
    """The answer to one of our errors, by its nearest ancestor in the table."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return answer(STATUS[kind], _snake(type(error).__name__), str(error))
    return answer(
        HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "The service failed; the fault is not in the request."
    )


def answered(endpoint: Callable[P, R]) -> Callable[P, R | Response]:
    """Turn our errors into answers, so that a bad picture is no exception in the server's log."""

    @functools.wraps(endpoint)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R | Response:
        try:
            return endpoint(*args, **kwargs)
        except errors.LucidaError as error:
            return answer_to(error)

    return wrapped


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
