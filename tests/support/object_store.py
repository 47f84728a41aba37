"""A real S3 server of one test's own, which can be told to turn requests away."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import httpx
import pytest
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class S3Server:
    """S3 on this machine; ``refuse`` says of each request whether it is turned away, as AWS throttles."""

    def __init__(self) -> None:
        self.refuse: Callable[[dict[str, Any]], bool] = lambda request: False
        self.refused = 0
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self, threaded=True)
        self.address = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def __call__(self, request: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        """Answer a request, as WSGI has it."""
        if not request["PATH_INFO"].startswith("/moto-api") and self.refuse(request):
            self.refused += 1
            start_response("503 Slow Down", [("Content-Type", "application/xml")])
            return [_SLOW_DOWN]
        return self._app(request, start_response)

    def close(self) -> None:
        """End the server."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@contextmanager
def faulty_s3(bucket: str) -> Iterator[tuple[Any, S3Server]]:
    """Serve S3 on this machine with one bucket; its address and credentials are in the environment."""
    server = S3Server()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", server.address)
        client = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"])
        client.create_bucket(Bucket=bucket)
        yield client, server
        # Its buckets belong to the process: the next server would find them.
        httpx.post(f"{server.address}/moto-api/reset", trust_env=False).raise_for_status()
    server.close()


@contextmanager
def running_s3(bucket: str) -> Iterator[Any]:
    """Serve S3 as :func:`faulty_s3` does, without a fault; yields a client."""
    with faulty_s3(bucket) as (client, _):
        yield client
