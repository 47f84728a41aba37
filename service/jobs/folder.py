"""The folder in which a service keeps its jobs and its figures: one of its own, and claimed by it.

Two services in one folder would answer each other's jobs by their own models, and add up each other's
figures. So the default is made of what is served and of the port, and a folder that another service of this
machine uses is refused.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import psutil

from service.settings import Settings

_FIGURES = "PROMETHEUS_MULTIPROC_DIR"
"""Where prometheus_client keeps the figures of all processes. BentoML gives all its services one folder, and
empties it whenever one starts."""


_GONE_SECONDS = 7 * 86_400.0


class FolderInUse(Exception):
    """Another service of this machine uses the folder."""


def with_own_folder(settings: Settings, served: str) -> Settings:
    """Return the settings with the folder that a worker uses: the one that was set, or one that is made of
    the name of what is served and of the port that this process listens at.
    """
    if "jobs" in settings.model_fields_set:
        return settings
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", Path(served).name)[:40]
    mark = hashlib.sha256(served.encode("utf-8", "surrogateescape")).hexdigest()[:8]
    return settings.model_copy(update={"jobs": settings.jobs / f"{name}-{mark}-{_listening_port()}"})


def claim_folder(folder: Path) -> None:
    """Note that this process' service uses a folder from now on, and have its figures kept there.

    Raises FolderInUse while another service of this machine does; OSError where the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Of this machine alone: containers may share a folder, and have processes of the same numbers.
    host = socket.gethostname()
    figures = folder / f"figures.{host}"
    file = os.open(folder / f"service.{host}.json", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        own, before = _service_process(), _read(file)
        if before != own:
            if _lives(before):
                raise FolderInUse(
                    f"Another service (process {before['process']}) keeps its jobs in {folder}. Stop it, or "
                    "set LUCIDA_JOBS to a folder of this service's own."
                )
            _remove_figures(folder, figures)
            os.ftruncate(file, 0)
            os.pwrite(file, json.dumps(own).encode(), 0)
        figures.mkdir(exist_ok=True)
    finally:
        os.close(file)
    if _FIGURES in os.environ:
        os.environ[_FIGURES] = str(figures)


def _remove_figures(folder: Path, own: Path) -> None:
    """Remove the figures of a service before this one, and those of machines that are long gone: each new
    container is one.
    """
    for figures in folder.glob("figures.*"):
        written = max((path.stat().st_mtime for path in figures.iterdir()), default=0.0)
        if figures == own or written < time.time() - _GONE_SECONDS:
            shutil.rmtree(figures, ignore_errors=True)


def _service_process() -> dict[str, Any]:
    """Return what tells the whole service's process from all others: BentoML's supervisor, or this one."""
    process = psutil.Process(os.getppid())
    if not is_bentoml(process):
        process = psutil.Process()
    return {"process": process.pid, "started": process.create_time()}


def is_bentoml(process: psutil.Process) -> bool:
    """Return whether a process is BentoML's supervisor."""
    return any(Path(word).name == "bentoml" for word in process.cmdline()[:3])


def _read(file: int) -> dict[str, Any]:
    try:
        content = json.loads(os.pread(file, 1_000, 0))
        return {"process": int(content["process"]), "started": float(content["started"])}
    except (ValueError, TypeError, KeyError):
        return {}


def _lives(service: dict[str, Any]) -> bool:
    try:
        return bool(service) and psutil.Process(service["process"]).create_time() == service["started"]
    except psutil.Error:
        return False


def _listening_port() -> int:
    """Return the port that this process listens at, which only BentoML's supervisor is told; 0 for none."""
    lines = psutil.Process().net_connections("tcp")
    return min((line.laddr.port for line in lines if line.status == psutil.CONN_LISTEN), default=0)
