"""Spans of real requests, as a collector that speaks OTLP over HTTP receives them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.tracing import start_tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def collector() -> Iterator[tuple[str, list]]:
    """The address of a collector, and the list to which it adds (service, span) of each span."""
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = ExportTraceServiceRequest()
            body.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
            for resource in body.resource_spans:
                names = {item.key: item.value.string_value for item in resource.resource.attributes}
                for scope in resource.scope_spans:
                    received.extend((names["service.name"], span) for span in scope.spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *words):
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", received
    server.shutdown()


def test_a_request_is_a_trace_with_its_parts_below_the_callers_span(collector, start, bundle_folder, bee):
    address, received = collector
    served = start(bundle_folder, OTEL_EXPORTER_OTLP_ENDPOINT=address, OTEL_BSP_SCHEDULE_DELAY="200")
    files = {"image": ("p.jpg", bee, "image/jpeg")}
    import httpx

    reply = httpx.post(
        f"{served.url}/explain", files=files, data={"overlay": "true"}, trust_env=False,
        headers={"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "mine"},
    )  # fmt: skip
    assert reply.status_code == 200
    served.get("/model")
    served.get("/readyz")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not any(span.name == "GET /model" for _, span in received):
        time.sleep(0.1)
    assert {service for service, _ in received} == {"camera-lucida"}
    own = {span.name: span for _, span in received if span.trace_id.hex() == TRACE}
    assert set(own) == {"POST /explain", "decode", "prepare", "model", "explain", "render"}
    root = own.pop("POST /explain")
    assert root.parent_span_id.hex() == PARENT
    attributes = {item.key: item.value for item in root.attributes}
    assert attributes["http.response.status_code"].int_value == 200
    assert attributes["lucida.request_id"].string_value == "mine"
    for span in own.values():
        assert span.parent_span_id == root.span_id
        assert root.start_time_unix_nano <= span.start_time_unix_nano
        assert span.end_time_unix_nano <= root.end_time_unix_nano
    milliseconds = reply.json()["timing_ms"]
    taken = (own["model"].end_time_unix_nano - own["model"].start_time_unix_nano) / 1e6
    assert taken == pytest.approx(milliseconds["model"], abs=5)
    others = {span.name for _, span in received} - {"POST /explain", *own}
    assert others == {"GET /model"}, "probes are not traced"


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_nothing_is_traced_where_no_collector_is_configured(environment):
    assert start_tracing(environment) is False


def test_a_protocol_that_is_not_spoken_is_refused_with_the_one_that_is():
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(ValueError, match="http/protobuf"):
        start_tracing(environment)
