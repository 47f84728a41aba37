"""The engine of a service: the one that was set, or the fastest, decided once for all of its processes.

Were each worker to decide by its own timings, two could answer the same picture by different engines. So the
first one times them and writes down what it chose, in the folder that the service's processes share; the
others, and the service when it is started again on the same machine, read it there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import platform
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from models.atomic_write import atomic_write
from models.backends.base import Backend
from models.backends.quantized import QuantizationFigures, read_quantized
from models.backends.registry import AUTO, choose_backend, create_backend
from models.bundle import Bundle
from models.devices import describe_device
from models.errors import LucidaError
from service.settings import Settings

log = logging.getLogger("lucida.service")


@dataclass(frozen=True, slots=True)
class ChosenEngine:
    """A backend, and by which timings it was chosen."""

    backend: Backend
    trials: dict[str, float] = field(default_factory=dict)
    """Milliseconds of a prediction by each engine that could be used; empty where the engine was set."""
    int8: QuantizationFigures | None = None
    """What the bundle's int8 blocks were measured to do, where it has any."""


def choose_engine(bundle: Bundle, settings: Settings) -> ChosenEngine:
    """Return the backend of the settings for a bundle; for "auto" the same in every process of a service.

    Raises as :func:`models.backends.registry.create_backend` does.
    """
    probe, threads = bundle.probe[0], settings.torch_threads
    quantized = read_quantized(bundle.folder, bundle.provenance.digest)
    figures = quantized.figures if quantized is not None else None

    def create(engine: str, precision: str) -> Backend:
        return create_backend(
            engine, bundle.model, probe=probe, threads=threads, precision=precision, quantized=quantized
        )

    if settings.engine != AUTO:
        return ChosenEngine(create(settings.engine, settings.precision), int8=figures)
    with _shared_note(bundle, settings) as note:
        if (chosen := _read(note)) is not None:
            try:
                backend = create(chosen["engine"], chosen["precision"])
                return ChosenEngine(backend, chosen["trials"], figures)
            except LucidaError as error:
                log.warning("The engine chosen before is not used: %s", error)
        backend, trials = choose_backend(
            bundle.model, probe=probe, threads=threads, precision=settings.precision, quantized=quantized
        )
        times = {f"{trial.name} {trial.precision}": trial.milliseconds for trial in trials}
        taken = {name: round(ms, 2) for name, ms in times.items() if ms is not None}
        log.info("Engines: %s. Taken: %s %s.", "; ".join(map(str, trials)), backend.name, backend.precision)
        if note is not None:
            content = {"engine": backend.name, "precision": backend.precision, "trials": taken}
            atomic_write(note, json.dumps(content).encode())
        return ChosenEngine(backend, taken, figures)


@contextmanager
def _shared_note(bundle: Bundle, settings: Settings) -> Iterator[Path | None]:
    """Hold the file of the choice for this process alone; None where no folder can be written."""
    note = settings.jobs / f"engine-{_mark(bundle, settings)}.json"
    try:
        note.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = os.open(note.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        log.warning("Each worker chooses its engine by itself, for %s cannot be written: %s", note, error)
        yield None
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield note
    finally:
        os.close(file)


def _mark(bundle: Bundle, settings: Settings) -> str:
    """Return what tells choices apart: bundle, device, processor, packages, settings."""
    decisive = [
        bundle.provenance.digest,
        str(sorted(path.name for path in bundle.folder.glob("int8.*"))),
        # Workers on GPUs of one kind choose alike.
        re.sub(r":\d+", "", describe_device(bundle.model.device)),
        socket.gethostname(),
        platform.machine(),
        _processor(),
        *(_version(name) for name in ("torch", "openvino")),
        str(settings.torch_threads),
        settings.precision,
    ]
    return hashlib.sha256("\n".join(decisive).encode()).hexdigest()[:24]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _read(note: Path | None) -> dict[str, Any] | None:
    if note is None:
        return None
    try:
        content = json.loads(note.read_bytes())
        return {key: content[key] for key in ("engine", "precision", "trials")}
    except (OSError, ValueError, KeyError, TypeError):
        return None
