"""The gate between a registered version and the alias that the service is built from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from models.bundle import load_bundle
from pipelines.errors import RegistryError
from pipelines.tracking.registry import (
    RegisteredVersion,
    fetch_bundle,
    find_champion,
    find_previous_champion,
    find_version,
    run_metrics,
    run_tags,
    set_champion,
    set_version_tag,
)

METRICS = ("val_mean_average_precision", "val_accuracy")
"""What two versions are compared by: the first that the run has. Several labels a picture have the former,
for most labels of a picture do not hold, and a model that says so always has a high accuracy.
"""
_FORCED_TAG = "promotion.forced"


@dataclass(frozen=True, slots=True)
class Promotion:
    """The decision of the gate, and its reasons."""

    name: str
    version: str
    promoted: bool
    reason: str


def promote(reference: str, *, accept_tie: bool = False, force: str | None = None) -> Promotion:
    """Move the alias champion to a version if its bundle loads and its metric is above the present
    champion's, or equal where ``accept_tie`` allows it.

    With ``force``, which is the reason for it, a version that is not better becomes champion all the same;
    the reason is kept as a tag of the version. Raises RegistryError or BundleError when the version cannot be
    judged at all; the alias then stays where it was.
    """
    version = find_version(reference)
    name, number = version.name, str(version.version)
    _check_bundle(name, number)
    present = find_champion(name)
    if present is not None and str(present.version) == number:
        return Promotion(name, number, promoted=True, reason="it is the champion already")
    better, reason = _judge(version, present, accept_tie=accept_tie, forced=force is not None)
    if not better and force is None:
        return Promotion(name, number, promoted=False, reason=reason)
    if not better:
        set_version_tag(name, number, _FORCED_TAG, force or "")
        reason = f"forced ({force}), though {reason}"
    set_champion(name, number)
    return Promotion(name, number, promoted=True, reason=reason)


def promote_previous(name: str) -> Promotion:
    """Move the alias champion back to the version that had it before; raises RegistryError or BundleError
    where there is none, or it does not load.
    """
    present, previous = find_champion(name), find_previous_champion(name)
    if present is None or previous is None:
        raise RegistryError(f"{name} has had no champion before the present one.")
    number = str(previous.version)
    _check_bundle(name, number)
    set_champion(name, number)
    return Promotion(
        name, number, promoted=True, reason=f"it was the champion before version {present.version}"
    )


def _check_bundle(name: str, number: str) -> None:
    with tempfile.TemporaryDirectory() as aside:
        load_bundle(fetch_bundle(f"{name}/{number}", Path(aside) / "bundle").folder)


def _judge(
    version: RegisteredVersion, present: RegisteredVersion | None, *, accept_tie: bool, forced: bool
) -> tuple[bool, str]:
    """Return whether a version is better than the present champion, and why."""
    own = run_metrics(version.run_id or "")
    metric = next((metric for metric in METRICS if metric in own), None)
    if metric is None:
        if forced:
            return False, f"its run has none of {', '.join(METRICS)}"
        raise RegistryError(
            f"{version.name} version {version.version} comes from a run without {' or '.join(METRICS)}; it "
            "cannot be judged."
        )
    if present is None:
        return True, f"first champion, {metric} {own[metric]:.3f}"
    other = run_metrics(present.run_id or "").get(metric)
    champion = f"version {present.version}, the champion"
    if other is None:
        return False, f"{champion}, comes from a run without {metric}"
    note = "" if _same_data(version.run_id, present.run_id) else " (measured on different data)"
    if own[metric] > other:
        return True, f"{metric} {own[metric]:.3f} is above {other:.3f} of {champion}{note}"
    if own[metric] == other:
        reason = f"{metric} {own[metric]:.3f} is that of {champion}{note}"
        return accept_tie, reason if accept_tie else f"{reason}, which stays unless a tie is accepted"
    return False, f"{metric} {own[metric]:.3f} is below {other:.3f} of {champion}{note}"


def _same_data(run_a: str | None, run_b: str | None) -> bool:
    tags = [run_tags(run_id or "").get("dataset.digest") for run_id in (run_a, run_b)]
    return tags[0] is not None and tags[0] == tags[1]
