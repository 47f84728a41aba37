"""The cases of a benchmark in which a method did best and worst, as pictures with its map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from models.attribution.result import Attribution
from models.attribution.targets import make_target
from models.devices import to_numpy
from models.images.decode import image_from_array
from models.images.encode import to_data_uri
from models.images.frame import Frame
from models.networks.transfer_model import TransferModel
from models.visualization.overlay import draw_overlay
from pipelines.evaluation.benchmark_tasks import BenchmarkCase, Row
from pipelines.evaluation.best_methods import BestMethod, main_figure
from pipelines.evaluation.method_benchmark import MethodBenchmark

_EACH = 2
_SIDE = 360


@dataclass(frozen=True, slots=True)
class DrawnCase:
    """A picture with a map, and how well the map did."""

    uri: str
    title: str
    what: str


@dataclass(frozen=True, slots=True)
class MethodCases:
    """The best and worst cases of a method in a task."""

    title: str
    cases: tuple[DrawnCase, ...]


def draw_cases(
    benchmark: MethodBenchmark, best: Sequence[BestMethod], model: TransferModel
) -> list[MethodCases]:
    """Return the cases of each method that is best for a question, in the task that decided it."""
    chosen = dict.fromkeys((item.task, item.candidate) for item in best if item.candidate is not None)
    by_method = []
    for task, candidate in chosen:
        rows = [
            row for row in benchmark.rows
            if (row["task"], row["candidate"]) == (task, candidate) and np.isfinite(main_figure(row))
        ]  # fmt: skip
        rows.sort(key=main_figure, reverse=True)
        few = min(_EACH, len(rows) // 2)
        cases = [
            _draw(benchmark, row, model, name)
            for name, part in (("best", rows[:few]), ("worst", rows[len(rows) - few :]))
            for row in part
        ]
        by_method.append(MethodCases(f"{candidate}: {task}", tuple(cases)))
    return by_method


def _draw(benchmark: MethodBenchmark, row: Row, model: TransferModel, name: str) -> DrawnCase:
    task = next(item for item in benchmark.tasks if item.name == row["task"])
    make = next(item.maps for item in benchmark.contestants if item.name == row["candidate"])
    case = task.case(row)
    (values,) = make(case.x, [case.label])
    target = make_target(model.classes, case.label)
    attribution = Attribution(target, row["candidate"], "", "ok", np.asarray(values, np.float32))
    pixels = _pixels(case, model)
    height, width = pixels.shape[:2]
    frame = Frame(width, height, width, height, 0, 0, width, height)
    overlay = draw_overlay(image_from_array(pixels), frame, attribution, max_side=_SIDE)
    return DrawnCase(to_data_uri(overlay), f"{name}: {main_figure(row):.2f}", target.name)


def _pixels(case: BenchmarkCase, model: TransferModel) -> np.ndarray:
    """Return an input as pixels, uint8 (H, W, 3)."""
    mean, std = (np.array(values)[:, None, None] for values in (model.geometry.mean, model.geometry.std))
    pixels = np.clip(to_numpy(case.x) * std + mean, 0.0, 1.0) * 255.0
    return np.ascontiguousarray(pixels.round().astype(np.uint8).transpose(1, 2, 0))
