"""Worker processes of a batch job on this machine: one a core, each with the model and one thread.

A worker says which picture it begins. One that dies, or says nothing for two minutes, is replaced, and its
part begun again picture by picture; a picture that ends a worker so becomes an error row and stops no other.
"""

from __future__ import annotations

import multiprocessing.connection
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.errors import LucidaError
from pipelines.batch.job import ExplainJob
from pipelines.batch.parts import JobPart, write_part
from pipelines.batch.processes import worker_context
from pipelines.batch.store import LocalStore, open_store
from pipelines.errors import DataError

if TYPE_CHECKING:
    from models.bundle import Bundle
    from models.explainer import Explainer

HANG_SECONDS = 120.0
_MOST_EARLY = 8
_BEGUN, _DONE, _FAILED, _READY = "begun", "done", "failed", "ready"


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """The job of a worker, its model, and where its results go."""

    bundle: Path
    job: ExplainJob
    out: str
    graph: Path | None = None
    """OpenVINO's graph of the model, where another process has converted it and saved it."""
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ), repr=False)
    """The process that workers are copied from may have begun before a variable was set."""


@dataclass
class _Worker:
    """A worker process with the part that it is at."""

    process: Any
    pipe: Connection
    part: JobPart | None = None
    picture: str | None = None
    """The last one that it began."""
    heard: float = field(default_factory=time.monotonic)


class WorkerPool:
    """So many worker processes; close it to end them."""

    def __init__(self, plan: WorkerPlan, count: int, *, hang_seconds: float = HANG_SECONDS) -> None:
        self._plan, self._hang, self._context = plan, hang_seconds, worker_context()
        self._workers = [self._start() for _ in range(count)]
        self._blamed: dict[str, dict[str, str]] = {}
        """By part: the pictures that ended a worker, and how."""
        self._careful: set[str] = set()
        self._suspected: dict[str, int] = {}
        """How many workers ended while they were alone with a picture."""
        self._early = 0
        """Workers that ended before they began a picture, since the last part that was done."""

    def write(self, parts: Sequence[JobPart]) -> Iterator[JobPart]:
        """Write the parts, in any order, and yield each that is done; raises what a worker raises."""
        waiting = deque(parts)
        left = len(parts)
        while left:
            for worker in self._workers:
                if worker.part is None and waiting:
                    self._give(worker, waiting.popleft())
            for worker in self._ready():
                done = self._hear(worker, waiting)
                if done is not None:
                    left -= 1
                    yield done
            for worker in list(self._workers):
                if worker.part is not None and time.monotonic() - worker.heard > self._hang:
                    worker.process.kill()
                    worker.process.join()
                    self._replace(worker, waiting, f"said nothing for {self._hang:.0f} s")

    def close(self, *, at_once: bool = True) -> None:
        """End the workers: at once, or those that wait in their own time."""
        for worker in self._workers:
            if at_once:
                worker.process.terminate()
            else:
                worker.pipe.close()
        for worker in self._workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process: Any = self._context.Process(  # type: ignore[attr-defined]
            target=_work, args=(theirs, self._plan), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _give(self, worker: _Worker, part: JobPart) -> None:
        worker.part, worker.picture, worker.heard = part, None, time.monotonic()
        message = (part, self._blamed.get(part.name, {}), part.name in self._careful)
        try:
            worker.pipe.send(message)
        except OSError:
            # It died while it waited; its end is heard of next.
            return

    def _ready(self) -> list[_Worker]:
        pipes = {worker.pipe: worker for worker in self._workers}
        heard = multiprocessing.connection.wait(list(pipes), timeout=0.5)
        return [pipes[pipe] for pipe in heard]  # type: ignore[index]

    def _hear(self, worker: _Worker, waiting: deque[JobPart]) -> JobPart | None:
        try:
            kind, what = worker.pipe.recv()
        except (EOFError, OSError):
            worker.process.join()
            code = worker.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            self._replace(worker, waiting, f"ended with {how}")
            return None
        worker.heard = time.monotonic()
        if kind == _BEGUN:
            worker.picture = what
        elif kind == _FAILED:
            raise what
        elif kind == _DONE:
            done, worker.part, self._early = worker.part, None, 0
            return done
        return None

    def _replace(self, worker: _Worker, waiting: deque[JobPart], how: str) -> None:
        """Put a new worker in the place of one that is gone, and its part back in front."""
        part, picture = worker.part, worker.picture
        worker.pipe.close()
        self._workers[self._workers.index(worker)] = self._start()
        if part is None:
            return
        if picture is None:
            self._early += 1
            if self._early > _MOST_EARLY:
                raise DataError(
                    f"{self._early} workers in a row ended before they began a picture, the last {how}; "
                    "there may be too little memory."
                )
            waiting.appendleft(part)
            return
        if part.name in self._careful:
            # Alone with this picture: it is the cause if it is so twice, and not somebody's kill.
            self._suspected[picture] = self._suspected.get(picture, 0) + 1
            if self._suspected[picture] > 1:
                reason = f"The process that read it {how}."
                self._blamed.setdefault(part.name, {})[picture] = reason
        self._careful.add(part.name)
        waiting.appendleft(part)


def _work(pipe: Connection, plan: WorkerPlan) -> None:
    """Be a worker: write the parts that come through the pipe, until it is closed."""
    # Ctrl-C goes to all processes of a terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(plan.environment)
    try:
        import torch
        from threadpoolctl import threadpool_limits

        from models.bundle import load_bundle
        from models.host_memory import keep_freed_memory
        from pipelines.batch.sinks import default_sinks
        from pipelines.batch.worker import BatchWorker

        keep_freed_memory()
        torch.set_num_threads(1)
        # A thread of numpy's own that waits for work spins, on a core that is another worker's.
        threadpool_limits(1)
        bundle = load_bundle(plan.bundle)
        job = plan.job
        explainer = _make_explainer(bundle, plan)
        worker, alone = BatchWorker(job, explainer), BatchWorker(job, explainer, batch_size=1)
        sinks = default_sinks(job, bundle, plan.out)
        pipe.send((_READY, None))
        while True:
            part, blamed, careful = pipe.recv()
            write_part(
                alone if careful else worker, part, sinks, blamed=blamed,
                begun=lambda name: pipe.send((_BEGUN, name)),
            )  # fmt: skip
            pipe.send((_DONE, part.name))
    except (EOFError, BrokenPipeError):
        return
    except (LucidaError, OSError) as error:
        pipe.send((_FAILED, error))


def _make_explainer(bundle: Bundle, plan: WorkerPlan) -> Explainer:
    """Return what explains in a worker, by the graph of the plan where it has one."""
    from models.backends.openvino import read_graph
    from models.backends.quantized import read_quantized
    from models.backends.registry import create_backend
    from models.explainer import Explainer

    job = plan.job
    if plan.graph is None:
        return Explainer(bundle, job.engine, precision=job.precision, threads=1)
    backend = create_backend(
        job.engine, bundle.model, probe=bundle.probe[0], threads=1, precision=job.precision,
        quantized=read_quantized(bundle.folder, bundle.provenance.digest), graph=read_graph(plan.graph),
    )  # fmt: skip
    return Explainer(bundle, backend)


def remove_leftovers(out: str | Path) -> None:
    """Remove what writers that were ended have left half-written in a folder of this machine."""
    store = open_store(out)
    if isinstance(store, LocalStore):
        for leftover in store.folder.rglob(".*.part"):
            leftover.unlink(missing_ok=True)
