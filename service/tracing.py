"""OpenTelemetry spans of a worker's requests and of their parts, exported by OTLP over HTTP.

They are made where OTEL_EXPORTER_OTLP_ENDPOINT (or OTEL_EXPORTER_OTLP_TRACES_ENDPOINT) names a collector; the
other variables of OpenTelemetry's specification hold too. Without, nothing is made and nothing is sent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Tracer

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_PROTOCOL = "http/protobuf"
_SERVICE = "camera-lucida"

EndRequest = Callable[[int, str], None]
"""Takes (HTTP status, request id) of the answer."""


class _Current:
    """The one provider of this process; BentoML's own, which is global, stays as it is."""

    provider: TracerProvider | None = None
    tracer: Tracer | None = None


def start_tracing(environment: Mapping[str, str] = os.environ) -> bool:
    """Begin to export spans where a collector is configured, and return whether one is; raises ValueError
    for a protocol that is not spoken.
    """
    if not any(environment.get(name) for name in _ENDPOINTS) or _is_disabled(environment):
        return False
    protocol = next((environment[name] for name in _PROTOCOLS if environment.get(name)), _PROTOCOL)
    if protocol != _PROTOCOL:
        raise ValueError(f"{_PROTOCOLS[1]} is {protocol!r}; the service speaks {_PROTOCOL}.")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named: dict[str, Any] = {} if environment.get("OTEL_SERVICE_NAME") else {SERVICE_NAME: _SERVICE}
    _Current.provider = TracerProvider(resource=Resource.create(named))
    _Current.provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    _Current.tracer = _Current.provider.get_tracer("camera_lucida")
    return True


def stop_tracing() -> None:
    """Send what waits, and stop."""
    if _Current.provider is not None:
        _Current.provider.shutdown()
    _Current.provider = _Current.tracer = None


def span(name: str) -> AbstractContextManager[object]:
    """Return a context that is a span within the present request's."""
    return _Current.tracer.start_as_current_span(name) if _Current.tracer is not None else nullcontext()


@contextmanager
def request_span(method: str, route: str | None, headers: Mapping[str, str]) -> Iterator[EndRequest]:
    """Make a request's span, as a child of the caller's where a traceparent names one (W3C Trace Context)."""
    if _Current.tracer is None:
        yield _no_request
        return
    from opentelemetry.trace import SpanKind, Status, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    caller = TraceContextTextMapPropagator().extract(dict(headers))
    attributes = {"http.request.method": method, **({"http.route": route} if route else {})}
    name = f"{method} {route}" if route else method
    with _Current.tracer.start_as_current_span(
        name, context=caller, kind=SpanKind.SERVER, attributes=attributes
    ) as current:

        def end(status: int, request_id: str) -> None:
            current.set_attribute("http.response.status_code", status)
            current.set_attribute("lucida.request_id", request_id)
            if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
                current.set_status(Status(StatusCode.ERROR))

        yield end


def _no_request(status: int, request_id: str) -> None:
    """End a request that is not traced."""


def _is_disabled(environment: Mapping[str, str]) -> bool:
    disabled = environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"
    return disabled or environment.get("OTEL_TRACES_EXPORTER", "").strip().lower() == "none"
