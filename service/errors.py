"""Each failure as an HTTP answer: a status, a kind for programs, one sentence for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

from models.errors import (
    Cancelled,
    ConfigError,
    DeadlineExceeded,
    ExplanationError,
    ImageError,
    ImageTooLarge,
    LucidaError,
    OutOfDeviceMemory,
    UnknownChoice,
    UnreadableImage,
    UnsupportedFormat,
)
from service.schemas import ErrorAnswer

STATUS: dict[type[LucidaError], HTTPStatus] = {
    UnsupportedFormat: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    ImageTooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnreadableImage: HTTPStatus.BAD_REQUEST,
    ImageError: HTTPStatus.BAD_REQUEST,
    UnknownChoice: HTTPStatus.UNPROCESSABLE_ENTITY,
    ExplanationError: HTTPStatus.UNPROCESSABLE_ENTITY,
    ConfigError: HTTPStatus.UNPROCESSABLE_ENTITY,
    DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    Cancelled: HTTPStatus.SERVICE_UNAVAILABLE,
    OutOfDeviceMemory: HTTPStatus.SERVICE_UNAVAILABLE,
}
"""What a client can cause. Anything else is the service's own fault: 500."""

INTERNAL_MESSAGE = "The service failed; the fault is not in the request."


class HTTPError(Exception):
    """A request that is refused, as a status, a kind for programs and a sentence for people."""

    def __init__(
        self, status: HTTPStatus, kind: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.message, self.headers = status, kind, message, dict(headers or {})

    @property
    def body(self) -> ErrorAnswer:
        """JSON body of the response."""
        return ErrorAnswer(error=self.message, kind=self.kind)

    def response(self) -> JSONResponse:
        """Return it as an HTTP response."""
        return JSONResponse(self.body.model_dump(), status_code=self.status, headers=self.headers)


OUT_OF_MEMORY = HTTPError(
    HTTPStatus.SERVICE_UNAVAILABLE,
    "no_memory",
    "There is not enough memory for this at the moment.",
    {"Retry-After": "10"},
)


def to_http_error(error: LucidaError) -> HTTPError:
    """Return an HTTPError for one of our errors, by its nearest ancestor in the table."""
    for kind in type(error).__mro__:
        if kind in STATUS:
            return HTTPError(STATUS[kind], _snake(type(error).__name__), str(error))
    return HTTPError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", INTERNAL_MESSAGE)


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
