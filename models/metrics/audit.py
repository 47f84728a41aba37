"""All that can be asked about how far to trust one explanation, in one go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from models.attribution.allowed import usable_methods
from models.attribution.forward import ForwardPass, run_forward
from models.attribution.registry import METHODS, attribute_each
from models.attribution.result import STATUS_MEANINGS, Attribution
from models.attribution.targets import Target
from models.cancellation import time_share
from models.errors import DeadlineExceeded, ExplanationError, UnknownChoice
from models.images.decode import Image
from models.metrics.agreement import MethodAgreement, measure_agreement
from models.metrics.faithfulness import FaithfulnessResult, measure_faithfulness
from models.metrics.layer_sweep import SweepStage, forward_for, sweep_layers
from models.metrics.stability import ShiftTest, run_shift_test
from models.progress import Progress, no_progress

AUDIT_CHECKS = ("faithfulness", "agreement", "shifts", "sweep")
_CHEAPEST_FIRST = ("shifts", "agreement", "faithfulness", "sweep")
_SHARE_FOR_CHECKS = 0.85
"""Of the time that is left: the rest is for putting the answer together."""
_MAP_EFFORT, _STAGE_EFFORT = {True: (5, 9), False: (10, 19)}, {True: (2, 3), False: (8, 19)}
"""By whether an audit is quick: steps of the curves of a map and of a stage's, and the controls that they
are held against."""


@dataclass(frozen=True, slots=True)
class Audit:
    """Results of the checks; None for a check that was not requested, or that has nothing to check."""

    attribution: Attribution
    faithfulness: FaithfulnessResult | None
    maps: tuple[Attribution, ...]
    """Of all methods that may be used, on the same target."""
    agreement: MethodAgreement | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Methods that were not asked, with the reason."""
    shifts: ShiftTest | None = None
    sweep: tuple[SweepStage, ...] | None = None
    skipped: tuple[str, ...] = ()
    """Checks that were asked for and for which there was no time, or not enough: of a sweep the stages that
    were judged are there."""


def check_names(names: Collection[str]) -> tuple[str, ...]:
    """Return the checks named, or all of them for none; raises UnknownChoice."""
    for name in names:
        if name not in AUDIT_CHECKS:
            raise UnknownChoice("check", name, AUDIT_CHECKS)
    return tuple(names) or AUDIT_CHECKS


def run_audit(
    image: Image,
    forward: ForwardPass,
    attribution: Attribution,
    *,
    disabled: Mapping[str, str],
    bank: np.ndarray | None = None,
    checks: Collection[str] = (),
    quick: bool = False,
    progress: Progress = no_progress,
) -> Audit:
    """Run the checks on one map of a single image's forward pass; ``disabled`` methods are not asked, maps of
    the ``bank`` are controls, and ``quick`` takes fewer steps and controls.

    The cheapest check comes first, and each has a fair share of the time that is left, so that a costly one
    takes nothing from the others; ``skipped`` names those for which it was too short. Raises UnknownChoice
    for a check that does not exist.
    """
    names, backend, target = check_names(checks), forward.backend, attribution.target
    method = _block_method(attribution.method, disabled)
    (steps, control_maps), (stage_steps, stage_maps) = _MAP_EFFORT[quick], _STAGE_EFFORT[quick]
    stages: list[SweepStage] = []
    runs: dict[str, Callable[[], Any]] = {
        "agreement": lambda: attribute_by_all_methods(_usual_pass(forward, attribution), target, disabled)
    }
    if attribution.status == "ok":
        runs["faithfulness"] = lambda: measure_faithfulness(
            backend, forward.x[0], attribution, bank=bank, steps=steps, control_maps=control_maps
        )
    if method is not None:
        runs["shifts"] = lambda: run_shift_test(backend, image, target, method=method, block=forward.block)
        runs["sweep"] = lambda: stages.extend(
            sweep_layers(
                backend,
                forward.x[0],
                target,
                method=method,
                disabled=disabled,
                bank=bank,
                steps=stage_steps,
                control_maps=stage_maps,
            )
        )
    with time_share(_SHARE_FOR_CHECKS):
        results, skipped = _run_in_shares({name: runs[name] for name in names if name in runs}, progress)
    maps, left_out = results.get("agreement", ((), {}))
    return Audit(
        attribution=attribution,
        faithfulness=results.get("faithfulness"),
        maps=maps,
        agreement=measure_agreement(maps) if len(maps) > 1 else None,
        left_out=left_out,
        shifts=results.get("shifts"),
        sweep=tuple(stages) or None,
        skipped=skipped,
    )


def _run_in_shares(
    runs: Mapping[str, Callable[[], Any]], progress: Progress
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the results of the checks by name, and the names of those for which there was no time."""
    ordered = [name for name in _CHEAPEST_FIRST if name in runs]
    results: dict[str, Any] = {}
    skipped = []
    for done, name in enumerate(ordered):
        progress("checking", done, len(ordered))
        try:
            with time_share(1 / (len(ordered) - done)):
                results[name] = runs[name]()
        except DeadlineExceeded:
            skipped.append(name)
    progress("checking", len(ordered), len(ordered))
    return results, tuple(skipped)


def _block_method(method: str, disabled: Mapping[str, str]) -> str | None:
    """Return the method itself where it reads a block; what asks the pixels would cost minutes at every stage
    and shift, so the first allowed method that reads a block stands for it. None where there is none.
    """
    able = [name for name, row in METHODS.items() if row.grid == "block" and name not in disabled]
    return method if method in able else next(iter(able), None)


def _usual_pass(forward: ForwardPass, attribution: Attribution) -> ForwardPass:
    """Return a pass at the Grad-CAM block, where a method was asked that reads another one for itself: the
    others are no good there.
    """
    if METHODS[attribution.method].usual_block == "grad_cam":
        return forward
    return run_forward(forward.model, forward.x, backend=forward.backend)


def attribute_by_all_methods(
    forward: ForwardPass, target: Target, disabled: Mapping[str, str]
) -> tuple[tuple[Attribution, ...], dict[str, str]]:
    """Return a quick map by each method that may be used, and why the others were left out."""
    methods = usable_methods(forward.model)
    left_out = {name: reason for name, reason in disabled.items() if name in methods}
    maps: list[Attribution] = []
    for name in methods:
        if name in left_out:
            continue
        try:
            quick = METHODS[name].parameters.from_names({}, quick=True)
            own = forward_for(METHODS[name], forward)
            (attribution,) = attribute_each(own, [target], method=name, parameters=quick)
        except ExplanationError as error:
            left_out[name] = str(error)
            continue
        except DeadlineExceeded:
            if len(maps) < 2:
                raise
            left_out[name] = "There was no time for it."
            continue
        if attribution.status == "ok":
            maps.append(attribution)
        else:
            left_out[name] = STATUS_MEANINGS[attribution.status]
    return tuple(maps), left_out
