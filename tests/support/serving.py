"""A real `bentoml serve` as a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

PROJECT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@dataclass
class Served:
    """A running service."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path
    jobs: Path

    def ask(self, route: str, data: bytes, /, *, timeout: float = 60, **fields: str) -> httpx.Response:
        files = {"image": ("p.jpg", data, "image/jpeg")}
        return httpx.post(f"{self.url}{route}", files=files, data=fields, timeout=timeout, trust_env=False)

    def get(self, route: str, **options: object) -> httpx.Response:
        return httpx.get(f"{self.url}{route}", timeout=60, trust_env=False, **options)

    def workers(self) -> list[psutil.Process]:
        """The processes that answer requests."""
        return self._children("_bentoml_impl.worker.service")

    def job_processes(self) -> list[psutil.Process]:
        """What works on jobs."""
        return self._children("service.jobs")

    def _children(self, word: str) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if word in child.cmdline():
                    found.append(child)
        return found

    def memory(self) -> int:
        """Resident bytes of all workers."""
        return sum(worker.memory_info().rss for worker in self.workers())

    def wait_ready(self, seconds: float = 90) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log.read_text()[-3000:]
            try:
                if self.get("/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
        raise AssertionError("not ready: " + self.log.read_text()[-3000:])

    def stop(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(40)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)


Serve = Callable[..., Served]


def start_service(
    folder: Path, log: Path, environment: dict[str, str], *, target: str = ".", jobs: Path | None = None
) -> Served:
    """Start ``bentoml serve`` in a folder, in a process group of its own; it may not be ready yet."""
    port = free_port()
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [str(BIN / "bentoml"), "serve", target, "--port", str(port)],
            stdout=sink, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True,
        )  # fmt: skip
    return Served(f"http://127.0.0.1:{port}", process, log, jobs or folder / "jobs")


@contextlib.contextmanager
def run_service(folder: Path, scratch: Path, settings: dict[str, str]) -> Iterator[Served]:
    """Serve a folder until the block ends, with stores in a scratch folder."""
    own = {"BENTOML_HOME": str(scratch / "bentoml"), "BENTOML_DO_NOT_TRACK": "true",
           "LUCIDA_WORKERS": "1", "OMP_WAIT_POLICY": "PASSIVE",
           "LUCIDA_JOBS": str(scratch / "jobs")}  # fmt: skip
    served = start_service(folder, scratch / "service.log", os.environ | own | settings)
    try:
        served.wait_ready()
        yield served
    finally:
        served.stop()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
