"""The gate: whether a version may go live, by the checks of a policy, on held-out pictures.

Each figure has the interval that the pictures allow. A check passes where the whole interval is on the right
side of its bound, fails where the whole interval is on the wrong side, and says that the set is too small to
tell where it is on both: noise neither blocks nor passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from models.errors import UnknownChoice
from pipelines.evaluation.explanation_drift import PictureDrift
from pipelines.evaluation.paired import Figure, Flips, Interval, bootstrap, count_flips, paired_difference
from pipelines.release.judged_version import JudgedVersion
from pipelines.release.policy import ALL, EACH_CLASS, METRICS, Check, Policy

Status = Literal["passed", "failed", "too small to tell", "could not be judged"]
DEFAULT_SEED_DRIFT = 0.10
"""Share of the evidence that another seed of a recipe is taken to move where `lucida baseline-drift` has not
measured it: it was 7 to 10 % on five sets of specimens (benchmarks/gate.py), 9 % on hymenoptera.
"""


_NO_CHAMPION = "There is no champion yet."
_OTHER_CLASSES = "The champion has other classes, so there is nothing to compare."


@dataclass(frozen=True, slots=True)
class CheckResult:
    """A check with what was measured."""

    check: Check
    status: Status
    figure: float | None
    champion: float | None
    interval: Interval | None
    """Of the figure or, against the champion, of the difference."""
    reason: str
    flips: Flips | None = None
    blocks: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """The judgement of a version."""

    version: JudgedVersion
    champion: JudgedVersion | None
    policy: Policy
    results: tuple[CheckResult, ...]
    drifts: tuple[PictureDrift, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing blocks."""
        return not any(result.blocks for result in self.results)

    @property
    def summary(self) -> str:
        """The verdict in a sentence."""
        counts = {
            status: sum(result.status == status for result in self.results)
            for status in ("passed", "failed", "too small to tell", "could not be judged")
        }
        listed = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        blocking = [result.check.title for result in self.results if result.blocks]
        if not blocking:
            return f"Nothing blocks: {listed}."
        return f"Blocked by {'; '.join(blocking)} ({listed})."


def judge(
    version: JudgedVersion,
    champion: JudgedVersion | None,
    policy: Policy,
    *,
    drifts: Sequence[PictureDrift] = (),
    seed_drifts: Sequence[PictureDrift] | None = None,
    classes_changed: bool = False,
) -> Verdict:
    """Return the verdict on a version, against the champion where there is one; one that has other classes
    (``classes_changed``) cannot be compared to.

    ``drifts`` are the moves of the evidence since the champion; ``seed_drifts`` those that another seed of
    the champion's recipe makes, on the same pictures. Raises UnknownChoice for a slice that is no class.
    """
    results = []
    for check in policy.checks:
        for single in _expanded(check, version):
            result = _judge_one(single, version, champion, drifts, seed_drifts)
            if classes_changed and champion is None and result.reason == _NO_CHAMPION:
                result = replace(result, status="could not be judged", reason=_OTHER_CLASSES)
            stops = result.status in ("failed", "could not be judged") and single.severity == "block"
            small = result.status == "too small to tell" and policy.too_small == single.severity == "block"
            results.append(replace(result, blocks=stops or small))
    return Verdict(version, champion, policy, tuple(results), tuple(drifts))


def _expanded(check: Check, version: JudgedVersion) -> list[Check]:
    """Return a check for each class where it asks for that; raises UnknownChoice for a slice that is none."""
    classes = version.classes
    if check.slice not in (ALL, EACH_CLASS, *classes):
        raise UnknownChoice(f"slice of the check {check.metric}", check.slice, (ALL, EACH_CLASS, *classes))
    return [replace(check, slice=name) for name in classes] if check.slice == EACH_CLASS else [check]


def _judge_one(
    check: Check,
    version: JudgedVersion,
    champion: JudgedVersion | None,
    drifts: Sequence[PictureDrift],
    seed_drifts: Sequence[PictureDrift] | None,
) -> CheckResult:
    classes_known = check.metric == "changed_classes" and "changed_classes" in version.facts
    of_both = check.compare == "champion" or check.metric in ("explanation_drift", "changed_classes")
    if champion is None and of_both and not classes_known:
        return CheckResult(check, "passed", None, None, None, _NO_CHAMPION)
    if check.metric == "explanation_drift":
        return judge_drift(check, version.classes, drifts, seed_drifts)
    if not METRICS[check.metric].of_images:
        return _judge_fact(check, version, champion)
    own = version.figure(check)
    other = champion.figure(check) if check.compare == "champion" and champion is not None else None
    if own is None or (check.compare == "champion" and other is None):
        whose = "this version" if own is None else "the champion"
        return CheckResult(
            check, "could not be judged", None, None, None,
            f"There is no {check.metric} of {whose}: {version.missing(check)}.",
        )  # fmt: skip
    count = version.count(check)
    if other is None:
        interval = bootstrap(own, count)
        return _by_bound(check, interval, None)
    return _by_champion(check, version, champion, own, other, count)


def _by_bound(check: Check, interval: Interval, champion: float | None) -> CheckResult:
    if not np.isfinite(interval.value):
        return CheckResult(
            check, "could not be judged", None, champion, None, "The pictures do not allow this figure."
        )
    above = check.min is not None
    bound = float(check.min if check.min is not None else check.max or 0.0)
    good, bad = (
        (interval.low >= bound, interval.high < bound)
        if above
        else (interval.high <= bound, interval.low > bound)
    )
    status: Status = "passed" if good else "failed" if bad else "too small to tell"
    return CheckResult(
        check, status, interval.value, champion, interval,
        f"{interval.value:.3f} ({interval.low:.3f} to {interval.high:.3f}); {check.rule}.",
    )  # fmt: skip


def _by_champion(
    check: Check,
    version: JudgedVersion,
    champion: JudgedVersion | None,
    own: Figure,
    other: Figure,
    count: int,
) -> CheckResult:
    difference = paired_difference(other, own, count)
    everything = np.arange(count)
    figure, before = own(everything), other(everything)
    if not np.isfinite(difference.value):
        return CheckResult(
            check, "could not be judged", None, None, None, "The pictures do not allow this figure."
        )
    better = difference if METRICS[check.metric].higher_is_better else _negated(difference)
    status: Status = "too small to tell"
    if better.low >= -check.margin:
        status = "passed"
    elif better.high < -check.margin:
        status = "failed"
    flips = None
    if check.metric == "accuracy" and champion is not None:
        flips = count_flips(champion.correct(check), version.correct(check))
    more = f"; {flips}" if flips is not None else ""
    return CheckResult(
        check, status, figure, before, difference,
        f"{figure:.3f}, the champion's {before:.3f}: {difference}; {check.rule}{more}.", flips,
    )  # fmt: skip


def _negated(interval: Interval) -> Interval:
    return Interval(-interval.value, -interval.high, -interval.low, interval.level)


def _judge_fact(check: Check, version: JudgedVersion, champion: JudgedVersion | None) -> CheckResult:
    """Judge a figure of the whole version, which has no noise of pictures."""
    value, champion_facts = version.facts.get(check.metric), champion.facts if champion is not None else {}
    if value is None:
        return CheckResult(
            check, "could not be judged", None, None, None, f"There is no {check.metric} of this version."
        )
    before = champion_facts.get(check.metric)
    if check.compare == "champion":
        if before is None:
            return CheckResult(
                check, "could not be judged", value, None, None, f"The champion has no {check.metric}."
            )
        worse = before - value if METRICS[check.metric].higher_is_better else value - before
        return CheckResult(
            check, "passed" if worse <= check.margin else "failed", value, before, None,
            f"{value:.3g}, the champion's {before:.3g}; {check.rule}.",
        )  # fmt: skip
    good = value >= check.min if check.min is not None else value <= float(check.max or 0.0)
    note = f" ({version.notes[check.metric]})" if check.metric in version.notes else ""
    return CheckResult(
        check, "passed" if good else "failed", value, before, None, f"{value:.3g}{note}; {check.rule}."
    )


def judge_drift(
    check: Check,
    classes: Sequence[str],
    drifts: Sequence[PictureDrift],
    seed_drifts: Sequence[PictureDrift] | None,
) -> CheckResult:
    """Judge a check of the explanation drift, of one of these classes or of all pictures, by how much more
    the evidence moved than another seed of the champion's recipe moves it.
    """
    label = None if check.slice == ALL else check.slice
    yardstick = {item.sha256: item.moved for item in seed_drifts or ()}
    # Of a picture that the yardstick was not measured on, another seed is taken to move its mean.
    measured = [value for value in yardstick.values() if value is not None]
    usual = float(np.mean(measured)) if measured else DEFAULT_SEED_DRIFT
    moved, expected = [], []
    for item in drifts:
        if item.moved is None or (label is not None and item.label != label):
            continue
        own = yardstick.get(item.sha256, usual)
        if own is not None:
            moved.append(item.moved)
            expected.append(own)
    if not moved:
        return CheckResult(
            check, "could not be judged", None, None, None,
            "No picture of it has evidence in both versions, so nothing can be compared.",
        )  # fmt: skip
    excess = np.asarray(moved) - np.asarray(expected)
    # Of several classes each is asked, so each is asked more strictly.
    level = 1 - 0.05 / (len(classes) if label is not None else 1)
    interval = bootstrap(lambda chosen: float(excess[chosen].mean()), len(excess), level=level)
    result = _by_bound(check, interval, None)
    source = "another seed's" if measured else "by default another seed's"
    return replace(
        result,
        reason=f"{np.mean(moved):.0%} of the evidence moved, {source} {np.mean(expected):.0%} "
        f"({len(moved)} pictures): {interval} beyond it; {check.rule}.",
    )
