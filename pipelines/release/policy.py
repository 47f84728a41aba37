"""What a version must meet to go live, as data: a TOML file of checks in the user's own repository.

too_small = "warn"

[[checks]]
metric = "accuracy"
compare = "champion"
margin = 0.02

[[checks]]
metric = "recall"
slice = "each class"
min = 0.6
severity = "warn"
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from models.errors import ConfigError, UnknownChoice

Severity = Literal["block", "warn"]
Comparison = Literal["bound", "champion"]
EACH_CLASS, ALL = "each class", "all"
SPLITS = ("held out", "val", "test")


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A figure that can be checked."""

    meaning: str
    higher_is_better: bool
    of_images: bool = True
    """Whether it is made of single pictures, so that it has an interval, slices and splits."""
    against_champion: bool = True
    """Whether a difference to the champion's is a question that it answers."""


METRICS: dict[str, MetricInfo] = {
    "accuracy": MetricInfo("share of right answers", True),
    "balanced_accuracy": MetricInfo("mean over the classes of the share that is found", True),
    "recall": MetricInfo("share of a class's pictures that is found", True),
    "worst_class_recall": MetricInfo("recall of the class with the lowest", True),
    "loss": MetricInfo("mean negative log of the true class's score, nats", False),
    "calibration_error": MetricInfo("gap between scores and share of right answers, in ten bins", False),
    "faithfulness": MetricInfo("percentile of the maps among control maps, 0 to 100", True),
    "localization": MetricInfo("AUROC of the evidence against the objects' masks or boxes", True),
    "explanation_drift": MetricInfo(
        "share of the evidence that moved since the champion, beyond what another seed moves", False,
        against_champion=False,
    ),
    "barred_methods": MetricInfo("methods that the sanity check bars", False, of_images=False),
    "size_mb": MetricInfo("megabytes of the bundle's weights", False, of_images=False),
    "latency_ms": MetricInfo("milliseconds of a prediction on this machine, eager, one picture", False,
                             of_images=False),
    "changed_classes": MetricInfo("classes that the champion has and this version has not, or the reverse",
                                  False, of_images=False, against_champion=False),
    "leaked_pictures": MetricInfo("held-out pictures that are among the training pictures", False,
                                  of_images=False, against_champion=False),
    "near_duplicates": MetricInfo("held-out pictures that are almost copies of training pictures", False,
                                  of_images=False, against_champion=False),
    "shortcut_findings": MetricInfo("marks, parts beside the objects and light that the version answers by",
                                    False, of_images=False, against_champion=False),
    "label_errors": MetricInfo("share of the labels that the other pictures contradict", False,
                               of_images=False, against_champion=False),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a version must meet."""

    metric: str
    compare: Comparison = "bound"
    """To a bound, or to the champion on the same pictures."""
    min: float | None = None
    max: float | None = None
    """The bound, of the figure."""
    margin: float = 0.0
    """How much worse than the champion it may be."""
    split: str = "held out"
    """val, test, or both together."""
    slice: str = ALL
    """"all" pictures, "each class" on its own, or the name of a class."""
    severity: Severity = "block"

    def __post_init__(self) -> None:
        """Refuse names that do not exist and bounds that say nothing."""
        info = METRICS.get(self.metric)
        if info is None:
            raise UnknownChoice("metric of a check", self.metric, METRICS)
        for what, value, choices in (
            ("compare", self.compare, ("bound", "champion")),
            ("severity", self.severity, ("block", "warn")),
            ("split", self.split, SPLITS),
        ):
            if value not in choices:
                raise UnknownChoice(f"{what} of the check {self.metric}", value, choices)
        if self.compare == "champion" and not info.against_champion:
            raise ConfigError(f"The check {self.metric} is of no champion's figure; give min or max.")
        if self.compare == "bound" and (self.min is None) == (self.max is None):
            raise ConfigError(f"The check {self.metric} needs min or max, or compare = 'champion'.")
        if self.compare == "champion" and (self.min is not None or self.max is not None):
            raise ConfigError(
                f"The check {self.metric} is against the champion: it takes a margin, no bound."
            )
        if self.margin < 0:
            raise ConfigError(f"The margin of the check {self.metric} is {self.margin}, which is below 0.")
        if self.slice != ALL and not info.of_images:
            raise ConfigError(f"The check {self.metric} is of the whole version; it has no slices.")

    @property
    def title(self) -> str:
        """Name it for a report."""
        where = "" if self.slice == ALL else f", {self.slice}"
        split = f" ({self.split})" if METRICS[self.metric].of_images else ""
        return f"{self.metric.replace('_', ' ')}{where}{split}"

    @property
    def rule(self) -> str:
        """Say what is asked."""
        if self.compare == "champion":
            return f"no worse than the champion's by more than {self.margin:g}"
        return f"at least {self.min:g}" if self.min is not None else f"at most {self.max:g}"


@dataclass(frozen=True, slots=True)
class Policy:
    """All that a version must meet."""

    checks: tuple[Check, ...]
    too_small: Severity = "warn"
    """What a check does for which there are too few pictures to tell."""
    name: str = "default"

    @property
    def digest(self) -> str:
        """SHA-256 of what it asks."""
        asked_for = {"checks": [asdict(check) for check in self.checks], "too_small": self.too_small}
        return hashlib.sha256(json.dumps(asked_for, sort_keys=True).encode()).hexdigest()


DEFAULT_POLICY = Policy(
    (
        Check("changed_classes", max=0),
        Check("leaked_pictures", max=0, severity="warn"),
        Check("near_duplicates", max=0, severity="warn"),
        Check("label_errors", max=0.05, severity="warn"),
        Check("shortcut_findings", max=0, severity="warn"),
        Check("accuracy", compare="champion", margin=0.02),
        Check("balanced_accuracy", compare="champion", margin=0.02),
        Check("worst_class_recall", compare="champion", margin=0.1),
        Check("loss", compare="champion", margin=0.1, severity="warn"),
        Check("calibration_error", max=0.15, severity="warn"),
        Check("faithfulness", min=60.0, severity="warn"),
        Check("localization", compare="champion", margin=0.05, severity="warn"),
        Check("explanation_drift", max=0.10, slice=EACH_CLASS),
        Check("barred_methods", max=4, severity="warn"),
        Check("size_mb", compare="champion", margin=100.0, severity="warn"),
        Check("latency_ms", compare="champion", margin=50.0, severity="warn"),
    )
)


def without_metric(policy: Policy, metric: str) -> Policy:
    """Return a policy without its checks of a metric: of localization for data without masks and boxes."""
    return replace(policy, checks=tuple(item for item in policy.checks if item.metric != metric))


def load_policy(path: Path | None) -> Policy:
    """Return a file's policy, the default one without; raises ConfigError or UnknownChoice."""
    if path is None:
        return DEFAULT_POLICY
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"The policy {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"The policy {path} is not TOML: {error}.") from error
    if odd := sorted(set(content) - {"checks", "too_small"}):
        raise ConfigError(f"The policy {path} has {odd[0]!r}; it may have: checks, too_small.")
    rows = content.get("checks")
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"The policy {path} must have at least one [[checks]].")
    too_small = content.get("too_small", "warn")
    if too_small not in ("warn", "block"):
        raise UnknownChoice("too_small of a policy", too_small, ("warn", "block"))
    return Policy(tuple(_check(row, path) for row in rows), too_small, path.name)


def _check(row: Mapping[str, Any], path: Path) -> Check:
    names = [field.name for field in fields(Check)]
    if odd := sorted(set(row) - set(names)):
        raise ConfigError(f"A check in {path} has {odd[0]!r}; it may have: {', '.join(names)}.")
    if "metric" not in row:
        raise ConfigError(f"A check in {path} names no metric; choose one of: {', '.join(METRICS)}.")
    for name in ("min", "max", "margin"):
        value = row.get(name, 0)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{name} of the check {row['metric']} is {value!r}; it must be a number.")
    for name in ("metric", "compare", "split", "slice", "severity"):
        if not isinstance(row.get(name, ""), str):
            raise ConfigError(f"{name} of a check in {path} is {row[name]!r}; it must be a text.")
    return Check(**row)
