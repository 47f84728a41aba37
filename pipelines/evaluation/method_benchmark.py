"""Methods of explanation measured for one model, against what is known and against controls.

What is asked of a map stands in :mod:`pipelines.evaluation.benchmark_tasks`. Each row is kept as it is
measured, so that a benchmark that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from models.attribution.allowed import usable_methods
from models.attribution.forward import ForwardPass, run_forward
from models.attribution.parameters import PatchOcclusionParameters
from models.attribution.registry import METHODS, attribute
from models.backends.base import Backend
from models.errors import ExplanationError
from models.metrics.layer_sweep import find_usual_block, stage_ends
from models.networks.transfer_model import TransferModel
from models.progress import Progress, no_progress
from pipelines.errors import DataError
from pipelines.evaluation.benchmark_tasks import BenchmarkTask, MapMaker, Row


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method at a block."""

    method: str
    block: str

    def __str__(self) -> str:
        """Name both, or the method alone where it reads no block."""
        return f"{self.method} at {self.block}" if METHODS[self.method].reads_block else self.method

    @property
    def costly(self) -> bool:
        """Whether a map takes many forwards."""
        return METHODS[self.method].grid != "block"


@dataclass(frozen=True, slots=True)
class Contestant:
    """A maker of maps, of this project or another, as a benchmark asks it."""

    name: str
    maps: MapMaker
    costly: bool = False


def list_candidates(model: TransferModel, x: Tensor) -> list[Candidate]:
    """Return each method at the Grad-CAM block, and those that read a block at the stage before as well; of
    networks that have no map, the others alone.
    """
    ends = stage_ends(model, x[None])
    blocks = [model.cam_block, *(end for end in ends[-2:-1] if end != model.cam_block)] if ends else []
    candidates = []
    for name in usable_methods(model):
        method = METHODS[name]
        if not method.reads_block:
            candidates.append(Candidate(name, model.cam_block))
        elif method.usual_block == "first" and blocks:
            candidates.append(Candidate(name, find_usual_block(method, model)))
        elif method.grid == "block":
            usual = blocks[-1:] if method.usual_block == "fine" else blocks
            candidates += [Candidate(name, block) for block in usual]
        elif blocks:
            candidates.append(Candidate(name, blocks[0]))
    return candidates


def cells_by_candidate(candidates: Sequence[Candidate], model: TransferModel, x: Tensor) -> dict[str, int]:
    """Return how many cells the maps of each candidate have along their shorter side."""
    cells = {}
    for item in candidates:
        method = METHODS[item.method]
        if method.grid == "block":
            cells[str(item)] = min(run_forward(model, x[None], block=item.block).map.shape[2:])
        else:
            own, side = method.parameters(), min(x.shape[1:])
            cells[str(item)] = own.patches if isinstance(own, PatchOcclusionParameters) else side // own.cell  # type: ignore[attr-defined]
    return cells


class _LastForward:
    """The forward passes of the input that was asked about last, one for each block."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._x: Tensor | None = None
        self._passes: dict[str | None, ForwardPass] = {}

    def of(self, x: Tensor, block: str | None) -> ForwardPass:
        """Return the pass of an input (3, H, W) as far as a block, run once for all methods."""
        if self._x is not x:
            self._x, self._passes = x, {}
        if block not in self._passes:
            self._passes[block] = run_forward(
                self._backend.model, x[None], block=block, backend=self._backend
            )
        return self._passes[block]


def make_contestants(backend: Backend, candidates: Sequence[Candidate]) -> list[Contestant]:
    """Return candidates as makers of maps; one makes none where its method does not apply to the network."""
    last = _LastForward(backend)
    return [_make_contestant(last, candidate) for candidate in candidates]


def _make_contestant(last: _LastForward, candidate: Candidate) -> Contestant:
    method = METHODS[candidate.method]
    quick = method.parameters.from_names({}, quick=True)
    block = candidate.block if method.reads_block else None

    def maps(x: Tensor, classes: Sequence[int]) -> list[np.ndarray]:
        try:
            (attributions,) = attribute(
                last.of(x, block), [list(classes)], method=candidate.method, parameters=quick
            )
        except ExplanationError:
            return []
        return [item.values for item in attributions]

    return Contestant(str(candidate), maps, candidate.costly)


class MethodBenchmark:
    """A benchmark of makers of maps on tasks, with what is measured in a file, line by line."""

    def __init__(
        self, contestants: Sequence[Contestant], tasks: Sequence[BenchmarkTask], file: Path,
        *, about: Mapping[str, Any],
    ) -> None:  # fmt: skip
        """Begin, or go on where a file of the same benchmark (``about``) ends; raises DataError for one of
        another.
        """
        self.contestants, self.tasks, self.file = contestants, tasks, file
        header = {"about": dict(about), "tasks": {task.name: len(task) for task in tasks}}
        lines = _read_lines(file)
        if lines and lines[0] != header:
            raise DataError(
                f"{file} is of another benchmark (model, pictures or options); name a new folder."
            )
        if not lines:
            self._write(header)
        self._units: list[Row] = lines[1:]

    @property
    def rows(self) -> list[Row]:
        """All that was measured, a row for each map."""
        return [
            row | {"task": unit["task"], "sample": unit["sample"]}
            for unit in self._units
            for row in unit["rows"]
        ]

    def run(self, progress: Progress = no_progress, check: Callable[[], bool] = lambda: True) -> None:
        """Measure what is not measured yet, for as long as ``check`` says so."""
        done = {(unit["task"], unit["sample"]) for unit in self._units}
        work = [(task, sample) for task in self.tasks for sample in range(len(task))]
        # One sample of each task after the other: whenever it is stopped, all were asked about as often.
        work.sort(key=lambda item: item[1] / max(1, len(item[0])))
        for number, (task, sample) in enumerate(work, start=1):
            if (task.name, sample) not in done:
                if not check():
                    return
                costly = task.costly_share > 0 and sample % task.costly_share == 0
                makers = {item.name: item.maps for item in self.contestants if costly or not item.costly}
                unit = {"task": task.name, "sample": sample, "rows": task.measure(sample, makers)}
                self._write(unit)
                self._units.append(unit)
            progress("measuring methods", number, len(work))

    def _write(self, line: Row) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _read_lines(file: Path) -> list[Row]:
    """Return the lines of a file, without a last one that was cut off."""
    if not file.is_file():
        return []
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]
