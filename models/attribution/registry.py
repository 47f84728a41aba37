"""The table of methods, and the one way to call them.

To add a method, add a row to ``METHODS``; service, jobs, sanity checks and tests take it from there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch import Tensor

from models.attribution.cam import grad_cam, grad_cam_plus_plus, hires_cam, layer_cam
from models.attribution.cells import average_cells
from models.attribution.forward import ForwardPass
from models.attribution.gradients import guided_grad_cam, guided_gradient_norm, integrated_gradients
from models.attribution.perturbation import Effort, occlusion, rise
from models.attribution.result import INPUT_BLOCK, Attribution, GridKind, Unit, make_attribution
from models.attribution.targets import Target, make_target
from models.errors import UnknownChoice

TargetRows = Sequence[Sequence[Target]]
"""For each of several targets of a picture, one target a picture of the batch."""


@dataclass(frozen=True, slots=True)
class Method:
    """One row of the table."""

    name: str
    title: str
    run: Callable[[ForwardPass, TargetRows, Effort], list[Tensor]]
    """Signed maps (N, rows, cols) for each row of targets."""
    grid: GridKind
    """Whether the map has the block's cells or the input's pixels."""
    good_for: str
    misleads: str
    unit: Unit = "logit"
    effort: tuple[str, ...] = ()
    """Which fields of Effort it heeds."""
    from_input: bool = False
    """Whether it derives by the pixels, which torch's twin alone can do."""
    core: Callable[[ForwardPass, TargetRows, Effort], list[Tensor]] | None = None
    """What of it could be blind to the weights, for the sanity check; all of it without."""
    adds_up: bool = False
    """Whether a cell of the input is the sum of its pixels, and not their mean."""
    reads_block: bool = True
    forwards: Callable[[Effort, int, int], int] = lambda effort, height, width: 1
    """About how many forwards one target of a picture of that size costs; a backward counts as two."""
    shared: bool = False
    """Whether its forwards serve all targets of a picture."""


def _each(run: Callable[[ForwardPass, Sequence[Target]], Tensor]) -> Callable[..., list[Tensor]]:
    return lambda evidence, rows, _: [run(evidence, row) for row in rows]


def _each_with_effort(
    run: Callable[[ForwardPass, Sequence[Target], Effort], Tensor],
) -> Callable[..., list[Tensor]]:
    return lambda evidence, rows, effort: [run(evidence, row, effort) for row in rows]


def _windows(effort: Effort, height: int, width: int) -> int:
    return (-(-height // effort.stride) + 1) * (-(-width // effort.stride) + 1)


METHODS: dict[str, Method] = {
    row.name: row
    for row in (
        Method(
            "grad_cam", "Grad-CAM", _each(grad_cam), "block",
            good_for="Which region speaks for a class, at the price of a prediction.",
            misleads="Below the last block the mean gradient can point at what the score does not use.",
        ),
        Method(
            "hires_cam", "HiResCAM", _each(hires_cam), "block",
            good_for="Each cell's own share of the score, also where positions matter to the layers above.",
            misleads="Noisy at early blocks; equal to Grad-CAM before a global average pooling.",
        ),
        Method(
            "layer_cam", "LayerCAM", _each(layer_cam), "block",
            good_for="Finer maps from earlier blocks.",
            misleads="Leaves out gradients against the class, so it looks surer than the model is.",
        ),
        Method(
            "grad_cam_plus_plus", "Grad-CAM++", _each(grad_cam_plus_plus), "block",
            good_for="Several objects of one class in a picture.",
            misleads="Heeds positive gradients only: maps of two classes look more alike than they are.",
        ),
        Method(
            "guided_grad_cam", "Guided Grad-CAM", _each(guided_grad_cam), "input", effort=("cell",),
            forwards=lambda effort, height, width: 3, from_input=True, core=_each(guided_gradient_norm),
            adds_up=True,
            good_for="Which edges and textures within Grad-CAM's region the score follows.",
            misleads="Unsigned, and guided backpropagation redraws edges almost whatever the weights are.",
        ),
        Method(
            "integrated_gradients", "Integrated gradients", _each_with_effort(integrated_gradients),
            "input", effort=("steps", "cell"), reads_block=False, adds_up=True,
            forwards=lambda effort, height, width: 3 * effort.steps, from_input=True,
            good_for="A share for each pixel; the shares add up to the score's rise above the mean colour.",
            misleads="Speckled; says nothing about what has the mean colour itself, and edges stand out.",
        ),
        Method(
            "occlusion", "Occlusion", _each_with_effort(occlusion), "input",
            effort=("window", "stride", "cell"), reads_block=False, forwards=_windows,
            good_for="What the score really loses when a part is covered; no gradients involved.",
            misleads="Blind to what exceeds the window or is there twice; a grey square is itself a sight.",
        ),
        Method(
            "rise", "RISE", rise, "input", unit="score", effort=("masks", "cells", "seed", "cell"),
            reads_block=False, forwards=lambda effort, height, width: effort.masks, shared=True,
            good_for="Score against visibility over many random masks; treats the model as a black box.",
            misleads="Speckled with few masks; flat where the score is saturated.",
        ),
    )
}  # fmt: skip
DEFAULT_METHOD = "grad_cam"


def get_method(name: str) -> Method:
    """The row of that name; raises UnknownChoice."""
    if name not in METHODS:
        raise UnknownChoice("method", name, METHODS)
    return METHODS[name]


def count_forwards(name: str, targets: int, height: int, width: int, effort: Effort | None = None) -> int:
    """About how many forwards the maps of so many targets of one picture take."""
    row = get_method(name)
    each = row.forwards(effort or Effort(), height, width)
    return each if row.shared else each * targets


def attribute(
    evidence: ForwardPass,
    targets: Sequence[Sequence[Target | int]],
    *,
    method: str = DEFAULT_METHOD,
    effort: Effort | None = None,
) -> list[list[Attribution]]:
    """Maps for each picture of the evidence, one for each of its targets (as many for every picture).

    Raises UnknownChoice for an unknown method or class, ExplanationError where the method does not apply.
    """
    if len(targets) != len(evidence.x):
        raise ValueError(f"{len(targets)} sequences of targets for {len(evidence.x)} pictures.")
    row, effort = get_method(method), effort or Effort()
    chosen = [[_as_target(evidence, each) for each in of_one] for of_one in targets]
    maps = row.run(evidence, list(zip(*chosen, strict=True)), effort)
    if row.grid == "input":
        maps = [average_cells(found, effort.cell, adds_up=row.adds_up) for found in maps]
    settings = {key: value for key, value in asdict(effort).items() if key in row.effort}
    name, precision = _execution_info(row, evidence)
    settings |= {"engine": name, "precision": precision}
    return [
        [
            make_attribution(
                each,
                maps[k][n].float().cpu().numpy(),
                method=method,
                block=evidence.block if row.reads_block else INPUT_BLOCK,
                unit=row.unit,
                settings=settings,
                grid=row.grid,
            )
            for k, each in enumerate(of_one)
        ]
        for n, of_one in enumerate(chosen)
    ]


def attribute_each(
    evidence: ForwardPass,
    targets: Sequence[Target | int],
    *,
    method: str = DEFAULT_METHOD,
    effort: Effort | None = None,
) -> list[Attribution]:
    """One map for each picture of the evidence, for its own target."""
    found = attribute(evidence, [[each] for each in targets], method=method, effort=effort)
    return [of_one[0] for of_one in found]


def _execution_info(row: Method, evidence: ForwardPass) -> tuple[str, str]:
    """What computed the values that a map was read from."""
    if row.from_input:
        return "eager", "fp32"
    return evidence.engine.ran(evidence.block if row.reads_block else evidence.model.cam_block, evidence.x)


def _as_target(evidence: ForwardPass, each: Target | int) -> Target:
    return make_target(evidence.model.classes, each) if isinstance(each, int) else each
