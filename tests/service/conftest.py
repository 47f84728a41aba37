"""A real `bentoml serve` of a small bundle, as many as a test needs, each with settings of its own."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import httpx
import psutil
import pytest
import torch

from models import bundle
from models.transfer import TransferModel

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    """Start a service with settings as LUCIDA_ variables; every one is stopped at the end."""
    begun: list[Served] = []

    def serve(bundle: Path, *, wait: bool = True, jobs: Path | None = None, **settings: str) -> Served:
        folder = tmp_path_factory.mktemp("service")
        own = {f"LUCIDA_{name.upper()}": value for name, value in settings.items() if name.islower()}
        other = {name: value for name, value in settings.items() if not name.islower()}
        environment = {name: value for name, value in os.environ.items() if not name.startswith("LUCIDA_")}
        environment |= {
            "BENTOML_HOME": str(folder / "bentoml"),
            "BENTOML_DO_NOT_TRACK": "true",
            "OMP_WAIT_POLICY": "PASSIVE",
            "LUCIDA_BUNDLE": str(bundle),
            "LUCIDA_JOBS": str(jobs or folder / "jobs"),
            **own,
            **other,
        }
        port, log = free_port(), folder / "log"
        with log.open("wb") as sink:
            process = subprocess.Popen(
                [str(BIN / "bentoml"), "serve", ".", "--port", str(port)],
                stdout=sink, stderr=subprocess.STDOUT, cwd=PROJECT, env=environment, start_new_session=True,
            )  # fmt: skip
        served = Served(f"http://127.0.0.1:{port}", process, log, jobs or folder / "jobs")
        begun.append(served)
        if wait:
            served.wait_ready()
        return served

    yield serve
    for served in begun:
        served.stop()


@pytest.fixture(scope="session")
def service(start: Serve, bundle_folder: Path) -> Served:
    """One for the tests that only ask."""
    return start(bundle_folder)


@pytest.fixture(scope="session")
def corpus() -> ModuleType:
    """The module that makes odd files."""
    spec = importlib.util.spec_from_file_location("corpus", Path(__file__).with_name("corpus.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["corpus"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def bee(photos: Path) -> bytes:
    return sorted((photos / "hymenoptera/val/bees").glob("*.jpg"))[0].read_bytes()


@pytest.fixture(scope="session")
def second(bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model of the same classes, whose scores differ."""
    model: TransferModel = bundle.load(bundle_folder).model
    with torch.no_grad():
        model.classifier[1].bias += torch.tensor([3.0, 0.0, -1.0])
    folder = tmp_path_factory.mktemp("bundles") / "second"
    bundle.save(model, folder, name="second")
    return folder


@pytest.fixture(scope="session")
def turned() -> Callable[[Path, Path], None]:
    """The function that points a link at another folder in one step."""

    def turn(link: Path, folder: Path) -> None:
        aside = link.with_name("aside")
        aside.symlink_to(folder, target_is_directory=True)
        aside.replace(link)

    return turn
