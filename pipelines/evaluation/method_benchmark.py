"""Methods of explanation measured for one model, against what is known and against controls.

Three questions, none of which a map can answer by being concentrated or by lying in the middle:

- grids: in a mosaic of pictures of different classes, is the map of a class in its cell?
- single deletion: does the map rank places by what the logit loses when each alone is covered, by two covers?
- deletion and insertion: how far does the score follow the order of the map (its area)?

Each row is kept as it is measured, so that a benchmark that was stopped goes on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from models.attribution.forward import ForwardPass, run_forward
from models.attribution.registry import METHODS, attribute
from models.attribution.result import Attribution
from models.attribution.targets import make_target
from models.backends.base import Backend
from models.errors import ExplanationError
from models.metrics.agreement import rank_correlation
from models.metrics.faithfulness import patch_losses, rank_patches, score_curves
from models.metrics.image_grids import ImageGrid, build_grids
from models.metrics.layer_sweep import stage_ends
from models.metrics.localization import Localization, auroc_on, localize
from models.networks.transfer_model import TransferModel
from models.progress import Progress, no_progress
from pipelines.errors import DataError

GRID_TASKS = {"grid 2x2": 2, "grid 3x3": 3}
DELETION, CEILING = "deletion", "agreement of the two covers"
_STEPS = 10
_COSTLY_SHARE = {"grid 2x2": 8, "grid 3x3": 0, DELETION: 4}
"""Methods that take many forwards are asked for one in so many of a task's samples, or for none."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A method at a block."""

    method: str
    block: str

    def __str__(self) -> str:
        """Name both, or the method alone where it reads no block."""
        return f"{self.method} at {self.block}" if METHODS[self.method].reads_block else self.method


def list_candidates(model: TransferModel, x: Tensor) -> list[Candidate]:
    """Return each method at the Grad-CAM block, and those that read a block at the stage before as well; of
    networks that have no map, the others alone.
    """
    ends = stage_ends(model, x[None])
    blocks = [model.cam_block, *(end for end in ends[-2:-1] if end != model.cam_block)] if ends else []
    candidates = []
    for name, method in METHODS.items():
        if not method.reads_block:
            candidates.append(Candidate(name, model.cam_block))
        elif method.grid == "block":
            candidates += [Candidate(name, block) for block in blocks]
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
            cells[str(item)] = min(x.shape[1:]) // method.parameters().cell  # type: ignore[attr-defined]
    return cells


class MethodBenchmark:
    """A benchmark of a model's methods on images (3, H, W), with what is measured in a file, line by line."""

    def __init__(
        self, backend: Backend, images: Sequence[Tensor], file: Path, *, about: Mapping[str, Any], grids: int
    ) -> None:
        """Begin, or go on where a file of the same benchmark (``about``) ends; raises DataError for one of
        another.
        """
        self.backend, self.images, self.file, self._grids = backend, images, file, grids
        self.candidates = list_candidates(backend.model, images[0])
        header = {"about": dict(about) | {"images": len(images), "grids": grids}}
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
            {"candidate": unit["candidate"], **row, "task": unit["task"], "sample": unit["sample"]}
            for unit in self._units
            for row in unit["rows"]
        ]

    def run(self, progress: Progress = no_progress) -> None:
        """Measure what is not measured yet."""
        done = {(unit["task"], unit["candidate"], unit["sample"]) for unit in self._units}
        work = list(self._plan())
        for number, (task, candidate, sample, measure) in enumerate(work, start=1):
            if (task, candidate, sample) not in done:
                unit = {"task": task, "candidate": candidate, "sample": sample, "rows": measure()}
                self._write(unit)
                self._units.append(unit)
            progress("measuring methods", number, len(work))

    def _write(self, line: Row) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _plan(self) -> Iterator[tuple[str, str, int, Callable[[], list[Row]]]]:
        """Yield each unit of work: task, candidate, number of the sample, and what measures it."""
        for task, side in GRID_TASKS.items():
            grids = build_grids(self.backend, self.images, side=side, count=self._grids)
            for sample, grid in enumerate(grids):
                for candidate in self._affordable(task, sample):
                    yield task, str(candidate), sample, partial(self._on_grid, candidate, grid)
        for sample, x in enumerate(self.images):
            yield DELETION, "all", sample, partial(self._by_deletion, sample, x)

    def _affordable(self, task: str, sample: int) -> list[Candidate]:
        share = _COSTLY_SHARE[task]
        costly = share > 0 and sample % share == 0
        return [item for item in self.candidates if costly or METHODS[item.method].grid == "block"]

    def _on_grid(self, candidate: Candidate, grid: ImageGrid) -> list[Row]:
        """Return a row for each cell, with the AUROC of the next cell's class in it as a control."""
        maps = self._maps(candidate, grid.x, grid.classes)
        rows = []
        for cell, attribution in enumerate(maps):
            mask = grid.mask(cell)
            result = localize(attribution, grid.frame, mask)
            assert isinstance(result, Localization)
            other = maps[(cell + 1) % len(maps)]
            rows.append(
                asdict(result) | {"cell": cell, "other_class": auroc_on(other.values, grid.frame, mask)}
            )
        return rows

    def _by_deletion(self, sample: int, x: Tensor) -> list[Row]:
        forward = run_forward(self.backend.model, x[None], backend=self.backend)
        top = int(forward.logits.argmax())
        target = make_target(self.backend.model.classes, top)
        losses = {cover: patch_losses(self.backend, x, target, cover) for cover in ("blur", "mean")}
        ceiling = rank_correlation(losses["blur"], losses["mean"])
        rows: list[Row] = [{"candidate": CEILING, "blur": ceiling, "mean": ceiling}]
        for candidate in self._affordable(DELETION, sample):
            for attribution in self._maps(candidate, x, [top]):
                if attribution.status != "ok":
                    continue
                ((deletion, insertion),) = score_curves(
                    self.backend, x, [attribution.values], target, "blur", _STEPS, seed=sample
                )
                rows.append({
                    "candidate": str(candidate), "area": insertion.area - deletion.area,
                    **{cover: rank_patches(attribution.values, lost) for cover, lost in losses.items()},
                })  # fmt: skip
        return rows

    def _maps(self, candidate: Candidate, x: Tensor, classes: Sequence[int]) -> list[Attribution]:
        """Return a map for each class; none where the method does not apply to the network."""
        method = METHODS[candidate.method]
        quick = method.parameters.from_names({}, quick=True)
        block = candidate.block if method.reads_block else None
        try:
            forward: ForwardPass = run_forward(self.backend.model, x[None], block=block, backend=self.backend)
            (maps,) = attribute(forward, [list(classes)], method=candidate.method, parameters=quick)
        except ExplanationError:
            return []
        return maps


def _read_lines(file: Path) -> list[Row]:
    """Return the lines of a file, without a last one that was cut off."""
    if not file.is_file():
        return []
    text = file.read_text()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        file.write_text(whole)
    return [json.loads(line) for line in whole.splitlines()]
