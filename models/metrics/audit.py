"""All that can be asked about how far to trust one explanation, in one go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from models.attribution.forward import ForwardPass
from models.attribution.registry import METHODS, attribute_each
from models.attribution.result import STATUS_MEANINGS, Attribution
from models.attribution.targets import Target
from models.errors import DeadlineExceeded, ExplanationError, UnknownChoice
from models.images.decode import Image
from models.metrics.agreement import MethodAgreement, measure_agreement
from models.metrics.faithfulness import FaithfulnessResult, measure_faithfulness
from models.metrics.layer_sweep import SweepStage, run_layer_sweep
from models.metrics.stability import ShiftTest, run_shift_test
from models.progress import Progress, no_progress

T = TypeVar("T")

AUDIT_CHECKS = ("faithfulness", "agreement", "shifts", "sweep")


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
    """Checks that were asked for and for which there was no time."""


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
    checks: Collection[str] = (),
    progress: Progress = no_progress,
) -> Audit:
    """Run the checks on one map of a single image's forward pass; ``disabled`` methods are not asked.

    Where the deadline of the work passes, the results so far are returned, and ``skipped`` names the rest.
    Raises UnknownChoice for a check that does not exist.
    """
    names, backend, target = check_names(checks), forward.backend, attribution.target
    method = _block_method(attribution.method, disabled)
    skipped: list[str] = []

    def run(name: str, check: Callable[[], T], *, able: bool = True) -> T | None:
        if name not in names or not able:
            return None
        progress(name, names.index(name), len(names))
        try:
            return check()
        except DeadlineExceeded:
            skipped.append(name)
            return None

    faithfulness = run(
        "faithfulness",
        lambda: measure_faithfulness(backend, forward.x[0], attribution),
        able=attribution.status == "ok",
    )
    compared = run("agreement", lambda: attribute_by_all_methods(forward, target, disabled))
    maps, left_out = compared if compared is not None else ((), {})
    block_method = method or attribution.method
    shifts = run(
        "shifts",
        lambda: run_shift_test(backend, image, target, method=block_method, block=forward.block),
        able=method is not None,
    )
    sweep = run(
        "sweep",
        lambda: tuple(run_layer_sweep(backend, forward.x[0], target, method=block_method)),
        able=method is not None,
    )
    progress("checked", len(names), len(names))
    agreement = measure_agreement(maps) if len(maps) > 1 else None
    return Audit(attribution, faithfulness, maps, agreement, left_out, shifts, sweep, tuple(skipped))


def _block_method(method: str, disabled: Mapping[str, str]) -> str | None:
    """Return the method itself where it reads a block; what asks the pixels would cost minutes at every stage
    and shift, so the first allowed method that reads a block stands for it. None where there is none.
    """
    able = [name for name, row in METHODS.items() if row.grid == "block" and name not in disabled]
    return method if method in able else next(iter(able), None)


def attribute_by_all_methods(
    forward: ForwardPass, target: Target, disabled: Mapping[str, str]
) -> tuple[tuple[Attribution, ...], dict[str, str]]:
    """Return a quick map by each method that may be used, and why the others were left out."""
    left_out = dict(disabled)
    maps: list[Attribution] = []
    for name in METHODS:
        if name in left_out:
            continue
        try:
            quick = METHODS[name].parameters.from_names({}, quick=True)
            (attribution,) = attribute_each(forward, [target], method=name, parameters=quick)
        except ExplanationError as error:
            left_out[name] = str(error)
            continue
        if attribution.status == "ok":
            maps.append(attribution)
        else:
            left_out[name] = STATUS_MEANINGS[attribution.status]
    return tuple(maps), left_out
