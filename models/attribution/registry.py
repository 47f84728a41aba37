"""The table of attribution methods, and the one way to call them.

To add a method, write a function from a forward pass and targets to signed maps, and register it with
:func:`block_method`, :func:`gradient_method` or :func:`perturbation_method` (docs/how-to/add-a-method.md).
Service, jobs, checks and tests take it from the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

from models.attribution import attention, cam, gradients, perturbation, propagation
from models.attribution.forward import ForwardPass
from models.attribution.measured import MeasuredMaps, facts_of, maps_of
from models.attribution.parameters import (
    GuidedGradCamParameters,
    IntegratedGradientsParameters,
    OcclusionParameters,
    Parameters,
    PatchOcclusionParameters,
    RiseParameters,
)
from models.attribution.result import INPUT_BLOCK, Attribution, GridKind, Unit, make_attribution
from models.attribution.targets import Target, make_target
from models.devices import to_numpy
from models.errors import UnknownChoice

TargetRows = Sequence[Sequence[Target]]
"""For each of several targets of an image, one target for each image of the batch."""
Run = Callable[[ForwardPass, TargetRows, Any], Sequence[Tensor | MeasuredMaps]]
"""Signed maps (N, rows, cols) for each sequence of targets, with what was measured of them."""
RunOne = Callable[[ForwardPass, Sequence[Target], Any], Tensor | MeasuredMaps]
"""The same for one sequence of targets."""
UsualBlock = Literal["grad_cam", "fine", "first"]
Cost = Callable[[Any, int, int, int], int]
"""(parameters, targets, height, width) to forwards of one image; a backward counts as two."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A method of the table."""

    name: str
    title: str
    good_for: str
    misleads: str
    run: Run
    count_forwards: Cost
    grid: GridKind
    """Whether the map has the block's cells or the input's."""
    reads_block: bool
    parameters: type[Parameters] = Parameters
    unit: Unit = "logit"
    usual_block: UsualBlock = "grad_cam"
    """Which block it reads where none is asked for: the Grad-CAM block, the "fine" one before the last stage,
    or the "first" that has a map."""
    needs_attention: bool = False
    """Whether it is for networks of tokens alone."""
    differentiates_input: bool = False
    """Whether it differentiates by the pixels, which only torch's copy of the network can do."""

    def block_of(self, forward: ForwardPass) -> str:
        """Return the block that the map is read from, or "input"."""
        return forward.block if self.reads_block else INPUT_BLOCK

    def execution_info(self, forward: ForwardPass) -> tuple[str, str]:
        """Return (backend, precision) that computed the values from which a map is read."""
        if self.differentiates_input:
            return "eager", "fp32"
        block = forward.block if self.reads_block else forward.model.cam_block
        return forward.backend.execution_info(block, forward.x)


METHODS: dict[str, Method] = {}
DEFAULT_METHOD = "grad_cam"


def register_method(method: Method) -> None:
    """Add a method to the table; raises ValueError for a name that is there already."""
    if method.name in METHODS:
        raise ValueError(f"There is a method {method.name!r} already.")
    METHODS[method.name] = method


def block_method(
    name: str,
    title: str,
    run: Callable[[ForwardPass, Sequence[Target]], Tensor | MeasuredMaps],
    *,
    good_for: str,
    misleads: str,
    usual_block: UsualBlock = "grad_cam",
    needs_attention: bool = False,
    cost: int = 1,
) -> None:
    """Register a method that reads one block, at the price of one backward for each target, or of ``cost``
    forwards.
    """
    register_method(
        Method(
            name=name, title=title, run=lambda forward, rows, _: [run(forward, row) for row in rows],
            count_forwards=lambda parameters, targets, height, width: cost * targets, grid="block",
            reads_block=True, good_for=good_for, misleads=misleads, usual_block=usual_block,
            needs_attention=needs_attention,
        )
    )  # fmt: skip


def gradient_method(
    name: str, title: str, run: RunOne, *,
    cost: Callable[[Any], int], reads_block: bool = False,
    parameters: type[Parameters], good_for: str, misleads: str,
) -> None:  # fmt: skip
    """Register a method that differentiates by the pixels; ``cost`` is in forwards for each target."""
    register_method(
        Method(
            name=name, title=title, run=_for_each(run),
            count_forwards=lambda parameters, targets, height, width: cost(parameters) * targets,
            grid="input", reads_block=reads_block, parameters=parameters, differentiates_input=True,
            good_for=good_for, misleads=misleads,
        )
    )  # fmt: skip


def perturbation_method(
    name: str, title: str, run: Run, *, cost: Cost, parameters: type[Parameters], unit: Unit = "logit",
    good_for: str, misleads: str,
) -> None:  # fmt: skip
    """Register a method that changes the input and watches the score."""
    register_method(
        Method(
            name=name, title=title, run=run, count_forwards=cost, grid="input", reads_block=False,
            parameters=parameters, unit=unit, good_for=good_for, misleads=misleads,
        )
    )  # fmt: skip


def get_method(name: str) -> Method:
    """Return the method of that name; raises UnknownChoice."""
    if name not in METHODS:
        raise UnknownChoice("method", name, METHODS)
    return METHODS[name]


def default_method(disabled: Sequence[str] | dict[str, str]) -> str | None:
    """Return the first method of the table that is not disabled; None where all are."""
    return next((name for name in METHODS if name not in disabled), None)


def attribute(
    forward: ForwardPass,
    targets: Sequence[Sequence[Target | int]],
    *,
    method: str = DEFAULT_METHOD,
    parameters: Parameters | None = None,
) -> list[list[Attribution]]:
    """Return maps for each image of the pass, one for each of its targets (as many for every image).

    Raises UnknownChoice for an unknown method or class, ExplanationError where the method does not apply.
    """
    if len(targets) != len(forward.x):
        raise ValueError(f"{len(targets)} sequences of targets for {len(forward.x)} images.")
    spec = get_method(method)
    parameters = parameters if parameters is not None else spec.parameters()
    chosen = [[_as_target(forward, target) for target in image_targets] for image_targets in targets]
    results = spec.run(forward, list(zip(*chosen, strict=True)), parameters)
    backend, precision = spec.execution_info(forward)
    settings = {**asdict(parameters), "engine": backend, "precision": precision}
    return [
        [
            make_attribution(
                target,
                to_numpy(maps_of(results[k])[n]),
                method=method,
                block=spec.block_of(forward),
                unit=spec.unit,
                settings={**settings, **facts_of(results[k], n)},
                grid=spec.grid,
            )
            for k, target in enumerate(image_targets)
        ]
        for n, image_targets in enumerate(chosen)
    ]


def attribute_each(
    forward: ForwardPass,
    targets: Sequence[Target | int],
    *,
    method: str = DEFAULT_METHOD,
    parameters: Parameters | None = None,
) -> list[Attribution]:
    """Return one map for each image of the pass, for its own target."""
    maps = attribute(forward, [[target] for target in targets], method=method, parameters=parameters)
    return [image_maps[0] for image_maps in maps]


def _for_each(run: RunOne) -> Run:
    return lambda forward, rows, parameters: [run(forward, row, parameters) for row in rows]


def _as_target(forward: ForwardPass, target: Target | int) -> Target:
    return make_target(forward.model.classes, target) if isinstance(target, int) else target


def _occlusion_cost(parameters: OcclusionParameters, targets: int, height: int, width: int) -> int:
    side = min(parameters.window, height, width)
    rows, cols = (
        len(perturbation.window_starts(length, side, parameters.stride)) for length in (height, width)
    )
    return rows * cols + 1


def _patch_cost(parameters: PatchOcclusionParameters, targets: int, height: int, width: int) -> int:
    rows, cols = perturbation.count_patches(parameters.patches, height, width)
    return rows * cols + 1


# ---------------------------------------------------------------- the table

block_method(
    "grad_cam", "Grad-CAM", cam.grad_cam,
    good_for="Which region speaks for a class, at the price of a prediction.",
    misleads="Below the last block the mean gradient can point at what the score does not use.",
)  # fmt: skip
block_method(
    "hires_cam", "HiResCAM", cam.hires_cam,
    good_for="Each cell's own share of the score, also where positions matter to the layers above.",
    misleads="Noisy at early blocks; equal to Grad-CAM before a global average pooling.",
)  # fmt: skip
block_method(
    "layer_cam", "LayerCAM", cam.layer_cam,
    good_for="Finer maps from earlier blocks.",
    misleads="Leaves out gradients against the class: mostly it shows what the network responds to at all.",
)  # fmt: skip
block_method(
    "grad_cam_plus_plus", "Grad-CAM++", cam.grad_cam_plus_plus,
    good_for="Several objects of one class in a picture.",
    misleads="Heeds positive gradients only: maps of two classes look more alike than they are.",
)  # fmt: skip
block_method(
    "propagated_cam", "Propagated CAM", propagation.propagated_cam, usual_block="fine",
    good_for="The whole object in finer cells: Grad-CAM's evidence carried to cells with like features.",
    misleads="Likeness is no evidence: a part that looks like the decisive one is lit with it.",
)  # fmt: skip
block_method(
    "attention_relevance", "Attention relevance (AttnLRP)", attention.attention_relevance,
    usual_block="first", needs_attention=True, cost=3,
    good_for="What each patch of a vision transformer adds to the score or takes, through its layers.",
    misleads="Speckled; shares of a product are halved by convention, and biases keep their own.",
)  # fmt: skip
block_method(
    "legrad", "LeGrad", attention.legrad, usual_block="first", needs_attention=True, cost=4,
    good_for="Which patches a vision transformer would have to attend to more for a higher score.",
    misleads="Leaves out what speaks against the class, and what the layers between attentions do.",
)  # fmt: skip
gradient_method(
    "guided_grad_cam", "Guided Grad-CAM", gradients.guided_grad_cam, parameters=GuidedGradCamParameters,
    cost=lambda parameters: 3, reads_block=True,
    good_for="Which edges and textures within Grad-CAM's region the score follows.",
    misleads="Unsigned, and guided backpropagation redraws edges almost whatever the weights are.",
)  # fmt: skip
gradient_method(
    "integrated_gradients", "Integrated gradients", gradients.integrated_gradients,
    parameters=IntegratedGradientsParameters,
    cost=lambda parameters: 3 * max(parameters.steps, parameters.most_steps),
    good_for="A share for each pixel of the score's rise above the mean colour, and how far they add up.",
    misleads="Speckled; says nothing about what has the mean colour itself, and edges stand out.",
)  # fmt: skip
perturbation_method(
    "occlusion", "Occlusion", perturbation.occlusion, parameters=OcclusionParameters,
    cost=_occlusion_cost,
    good_for="What the score really loses when a part is covered; no gradients involved.",
    misleads="Blind to what exceeds the window or is there twice; a grey square is itself a sight.",
)  # fmt: skip
perturbation_method(
    "patch_occlusion", "Patch occlusion", perturbation.patch_occlusion, parameters=PatchOcclusionParameters,
    cost=_patch_cost,
    good_for="What the score loses without each part, by two covers at once, in 37 predictions.",
    misleads="Coarse; blind to what is there twice, and to what fills several patches.",
)  # fmt: skip
perturbation_method(
    "rise", "RISE", perturbation.rise, parameters=RiseParameters, unit="score",
    cost=lambda parameters, targets, height, width: parameters.masks,
    good_for="Score against visibility over many random masks; treats the model as a black box.",
    misleads="Speckled with few masks; flat where the score is saturated.",
)  # fmt: skip
