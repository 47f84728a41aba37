"""The gate between a registered version and the alias that the service is built from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from models.bundle import load_bundle
from pipelines.errors import RegistryError
from pipelines.tracking.registry import (
    fetch_bundle,
    find_champion,
    find_version,
    run_metrics,
    run_tags,
    set_champion,
)

METRIC = "val_accuracy"


@dataclass(frozen=True, slots=True)
class Promotion:
    """The decision of the gate, and its reasons."""

    name: str
    version: str
    promoted: bool
    reason: str


def promote(reference: str) -> Promotion:
    """Move the alias champion to a version if its bundle loads and its accuracy is not below the present
    champion's.

    Raises RegistryError or BundleError when the version cannot be judged at all; the alias then stays where
    it was.
    """
    model_version = find_version(reference)
    name, number = model_version.name, str(model_version.version)
    with tempfile.TemporaryDirectory() as aside:
        load_bundle(fetch_bundle(f"{name}/{number}", Path(aside) / "bundle").folder)
    accuracy = _accuracy(name, number, model_version.run_id)
    present = find_champion(name)
    if present is not None and str(present.version) == number:
        return Promotion(name, number, promoted=True, reason="it is the champion already")
    if present is None:
        set_champion(name, number)
        return Promotion(name, number, promoted=True, reason=f"first champion, {METRIC} {accuracy:.3f}")
    other = _accuracy(name, str(present.version), present.run_id)
    note = "" if _same_data(model_version.run_id, present.run_id) else " (measured on different data)"
    if accuracy < other:
        reason = f"{METRIC} {accuracy:.3f} is below {other:.3f} of champion version {present.version}{note}"
        return Promotion(name, number, promoted=False, reason=reason)
    set_champion(name, number)
    reason = f"{METRIC} {accuracy:.3f} is not below {other:.3f} of version {present.version}{note}"
    return Promotion(name, number, promoted=True, reason=reason)


def _accuracy(name: str, number: str, run_id: str | None) -> float:
    metrics = run_metrics(run_id or "")
    if METRIC not in metrics:
        raise RegistryError(
            f"{name} version {number} comes from a run without {METRIC}; it cannot be judged."
        )
    return metrics[METRIC]


def _same_data(run_a: str | None, run_b: str | None) -> bool:
    tags = [run_tags(run_id or "").get("dataset.digest") for run_id in (run_a, run_b)]
    return tags[0] is not None and tags[0] == tags[1]
