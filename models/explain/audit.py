"""All that can be asked about how far to trust one explanation, in one go."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from models.errors import DeadlineExceeded, ExplanationError, UnknownChoice
from models.explain.agreement import Agreement, agreement
from models.explain.attribution import MEANINGS, Attribution
from models.explain.faithfulness import Faithfulness, faithfulness
from models.explain.look import Evidence
from models.explain.methods import METHODS, explain_each
from models.explain.pixels import QUICK
from models.explain.shifts import ShiftTest, shift_test
from models.explain.sweep import Stage, layer_sweep
from models.explain.targets import Target
from models.images import Image

T = TypeVar("T")

CHECKS = ("faithfulness", "agreement", "shifts", "sweep")


@dataclass(frozen=True, slots=True)
class Audit:
    """What the checks found; None for one that was not asked for, or that has nothing to judge."""

    attribution: Attribution
    faithfulness: Faithfulness | None
    maps: tuple[Attribution, ...]
    """Of all methods that may be used, on the same target."""
    agreement: Agreement | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Methods that were not asked, with the reason."""
    shifts: ShiftTest | None = None
    sweep: tuple[Stage, ...] | None = None
    cut: tuple[str, ...] = ()
    """Checks that were asked for and for which there was no time."""


def checked(names: Collection[str]) -> tuple[str, ...]:
    """The checks named, or all of them for none; raises UnknownChoice."""
    for name in names:
        if name not in CHECKS:
            raise UnknownChoice("check", name, CHECKS)
    return tuple(names) or CHECKS


def audit(
    image: Image,
    evidence: Evidence,
    attribution: Attribution,
    *,
    barred: Mapping[str, str],
    checks: Collection[str] = (),
    report: Callable[[str, int, int], None] | None = None,
) -> Audit:
    """Put one map of a single picture's evidence to the checks; ``barred`` methods are not asked.

    Where the deadline of the work passes, what was found by then is returned, and ``cut`` names the rest.
    Raises UnknownChoice for a check that does not exist.
    """
    wanted, engine, target = checked(checks), evidence.engine, attribution.target
    method = _standing_for(attribution.method, barred)
    cut: list[str] = []

    def run(name: str, check: Callable[[], T], *, able: bool = True) -> T | None:
        if name not in wanted or not able:
            return None
        if report is not None:
            report(name, wanted.index(name), len(wanted))
        try:
            return check()
        except DeadlineExceeded:
            cut.append(name)
            return None

    judged = run(
        "faithfulness",
        lambda: faithfulness(engine, evidence.x[0], attribution),
        able=attribution.status == "ok",
    )
    asked = run("agreement", lambda: all_methods(evidence, target, barred))
    maps, left_out = asked if asked is not None else ((), {})
    stood = method or attribution.method
    moved = run(
        "shifts",
        lambda: shift_test(engine, image, target, method=stood, block=evidence.block),
        able=method is not None,
    )
    stages = run(
        "sweep",
        lambda: tuple(layer_sweep(engine, evidence.x[0], target, method=stood)),
        able=method is not None,
    )
    if report is not None:
        report("checked", len(wanted), len(wanted))
    agreed = agreement(maps) if len(maps) > 1 else None
    return Audit(attribution, judged, maps, agreed, left_out, moved, stages, tuple(cut))


def _standing_for(method: str, barred: Mapping[str, str]) -> str | None:
    """The method itself where it reads a block; what asks the pixels would cost minutes at every stage and
    shift, so the first allowed method that reads a block stands for it. None where there is none.
    """
    able = [name for name, row in METHODS.items() if row.grid == "block" and name not in barred]
    return method if method in able else next(iter(able), None)


def all_methods(
    evidence: Evidence, target: Target, barred: Mapping[str, str]
) -> tuple[tuple[Attribution, ...], dict[str, str]]:
    """A quick map by each method that may be used, and why the others were left out."""
    left_out = dict(barred)
    maps: list[Attribution] = []
    for name in METHODS:
        if name in left_out:
            continue
        try:
            (found,) = explain_each(evidence, [target], method=name, effort=QUICK)
        except ExplanationError as error:
            left_out[name] = str(error)
            continue
        if found.status == "ok":
            maps.append(found)
        else:
            left_out[name] = MEANINGS[found.status]
    return tuple(maps), left_out
