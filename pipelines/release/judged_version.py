"""A version with all that the gate asks of it, measured on held-out pictures."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from models.bundle import WEIGHTS_FILE, Bundle
from models.explainer import Explainer
from models.images.decode import read_image
from models.metrics.faithfulness import measure_faithfulness
from models.metrics.localization import localize
from models.reference import control_bank
from pipelines.data.dataset import Dataset, Sample, match_classes
from pipelines.evaluation.classification import BINS, EvaluatedSample, evaluate
from pipelines.evaluation.data_issues import DataIssues, embed_by, inspect_data
from pipelines.evaluation.explanation_drift import ExplainedSample, explain_truths
from pipelines.evaluation.explanations import object_region
from pipelines.evaluation.paired import Figure
from pipelines.progress import Reporter
from pipelines.release.policy import ALL, Check, Policy
from pipelines.shortcuts.finder import find_shortcuts
from pipelines.shortcuts.samples import dataset_images

_MOST_EXPLAINED = 400
_MOST_FAITHFUL, _CONTROL_MAPS, _STEPS = 20, 9, 5
"""A picture takes (control maps + 1) x 2 x (steps - 1) forwards, and 52 more."""
_TIMED = 9
_MOST_SEARCHED = 300
"""Pictures that are searched for shortcuts."""


@dataclass(frozen=True)
class JudgedVersion:
    """A version's answers and evidence on the held-out pictures, in one order for all versions."""

    name: str
    number: str
    run_id: str
    bundle: Bundle = field(repr=False)
    classes: tuple[str, ...]
    """In the order of the data, as the labels below are."""
    samples: tuple[Sample, ...] = field(repr=False)
    splits: np.ndarray = field(repr=False)
    """(N,) of "val" and "test"."""
    truths: tuple[tuple[int, ...], ...] = field(repr=False)
    hits: tuple[tuple[bool, ...], ...] = field(repr=False)
    """Of each sample its true classes, and whether each of them is answered."""
    right: np.ndarray = field(repr=False)
    """(N,) whether exactly the true classes are answered."""
    confidence: np.ndarray = field(repr=False)
    truth: np.ndarray = field(repr=False)
    """(N,) the scores of the answer and of the true class."""
    explained: tuple[ExplainedSample, ...] = field(repr=False)
    faithfulness: np.ndarray = field(repr=False)
    localization: np.ndarray = field(repr=False)
    """(N,) percentile, AUROC of the map against the mask; NaN where it was not measured."""
    facts: Mapping[str, float]
    """Figures of the whole version."""
    notes: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """Name and number."""
        return f"{self.name} version {self.number}"

    def count(self, check: Check) -> int:
        """Return how many pictures a check is about."""
        return len(self._chosen(check))

    def correct(self, check: Check) -> list[bool]:
        """Return for each of a check's pictures whether the answer is right."""
        return [bool(item) for item in self.right[self._chosen(check)]]

    def figure(self, check: Check) -> Figure | None:
        """Return a check's figure as a function of some of its pictures; None where there is nothing to
        measure it by.
        """
        chosen = self._chosen(check)
        columns = {"faithfulness": self.faithfulness, "localization": self.localization}
        if not len(chosen):
            return None
        if check.metric in columns:
            values = columns[check.metric][chosen]
            return _mean_of_measured(values) if np.isfinite(values).any() else None
        right = self.right[chosen].astype(float)
        recalls = self._recalls(chosen, check)
        truth, confidence = self.truth[chosen], self.confidence[chosen]
        figures: dict[str, Figure] = {
            "accuracy": lambda draw: float(right[draw].mean()),
            "recall": lambda draw: float(np.mean(recalls(draw))),
            "loss": lambda draw: float(-np.log(np.clip(truth[draw], 1e-12, 1.0)).mean()),
            "balanced_accuracy": lambda draw: float(np.mean(recalls(draw))),
            "worst_class_recall": lambda draw: float(np.min(recalls(draw))),
            "calibration_error": lambda draw: _calibration_error(right[draw], confidence[draw]),
        }
        return figures[check.metric]

    def missing(self, check: Check) -> str:
        """Say what a check lacks."""
        if check.metric == "localization":
            return "the data have no masks or boxes for these pictures"
        return "no held-out picture belongs to it, or no method may explain it"

    def _chosen(self, check: Check) -> np.ndarray:
        keep = np.ones(len(self.samples), dtype=bool)
        if check.split != "held out":
            keep &= self.splits == check.split
        if check.slice != ALL:
            place = self.classes.index(check.slice)
            keep &= np.array([place in labels for labels in self.truths])
        return np.flatnonzero(keep)

    def _recalls(self, chosen: np.ndarray, check: Check) -> Callable[[np.ndarray], np.ndarray]:
        """Return what gives the recall of each class that a draw of the chosen samples has; of a slice that
        is a class, of that class alone.
        """
        pairs = np.array(
            [
                (place, label, hit)
                for place, n in enumerate(chosen)
                for label, hit in zip(self.truths[n], self.hits[n], strict=True)
                if check.slice in (ALL, self.classes[label])
            ]
        ).reshape(-1, 3)
        rows, labels, hit = pairs.T

        def recalls(draw: np.ndarray) -> np.ndarray:
            weights = np.bincount(draw, minlength=len(chosen))[rows]
            drawn_counts = np.bincount(labels, weights=weights)
            hits = np.bincount(labels, weights=weights * hit)
            return hits[drawn_counts > 0] / drawn_counts[drawn_counts > 0]

        return recalls


def judge_version(
    bundle: Bundle,
    data: Dataset,
    policy: Policy,
    *,
    number: str,
    run_id: str,
    reporter: Reporter,
    issues: DataIssues | None = None,
) -> JudgedVersion:
    """Measure what the policy asks of a version, on the data's validation and test pictures; ``issues`` are
    those that its run found in the data, which are looked for where they are missing.
    """
    metrics = {check.metric for check in policy.checks}
    own = match_classes(data, bundle.model.classes)
    pairs = [(sample, split) for split in ("val", "test") for sample in own.samples(split)]
    samples = [sample for sample, _ in pairs]
    evaluation = evaluate(bundle.model, samples, "held out", progress=reporter.step)
    explainer = Explainer(bundle)
    explained = []
    if {"explanation_drift", "localization"} & metrics and explainer.default_method not in explainer.disabled:
        explained = explain_truths(explainer, held_out(own), progress=reporter.step)
    shortcut_facts, shortcut_notes = _shortcuts(explainer, own, metrics, reporter)
    to_data = [data.classes.index(name) for name in bundle.model.classes]
    return JudgedVersion(
        name=bundle.provenance.model,
        number=number,
        run_id=run_id,
        bundle=bundle,
        classes=tuple(data.classes),
        samples=tuple(samples),
        splits=np.array([split for _, split in pairs]),
        truths=tuple(tuple(to_data[label] for label in sample.labels) for sample in samples),
        hits=tuple(_hits(item) for item in evaluation.samples),
        right=np.array([item.is_correct for item in evaluation.samples]),
        confidence=np.array([item.top.score for item in evaluation.samples]),
        truth=np.array([item.truth_score for item in evaluation.samples]),
        explained=tuple(explained),
        faithfulness=_faithfulness(explainer, samples, metrics, reporter),
        localization=_localization(own, samples, explained if "localization" in metrics else []),
        facts=_facts(bundle, own, metrics, issues, reporter) | shortcut_facts,
        notes={"barred_methods": ", ".join(explainer.barred) or "none", **shortcut_notes},
    )


def held_out(data: Dataset) -> list[Sample]:
    """Return the held-out samples whose evidence is compared, the same ones for every version."""
    samples = [*data.val, *data.test]
    return sorted(samples, key=lambda sample: sample.sha256)[:_MOST_EXPLAINED]


def _mean_of_measured(values: np.ndarray) -> Figure:
    def mean(draw: np.ndarray) -> float:
        measured = values[draw][np.isfinite(values[draw])]
        return float(measured.mean()) if len(measured) else float("nan")

    return mean


def _hits(item: EvaluatedSample) -> tuple[bool, ...]:
    """Return for each true class of a sample whether it is answered."""
    answered = {prediction.index for prediction in item.ranking if prediction.accepted}
    return tuple(label in answered for label in item.sample.labels)


def _calibration_error(right: np.ndarray, confidence: np.ndarray) -> float:
    """Return the expected calibration error (Naeini et al. 2015) in equal bins."""
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [
        np.abs(right[bins == number].mean() - confidence[bins == number].mean()) * (bins == number).mean()
        for number in np.unique(bins)
    ]
    return float(np.sum(gaps))


def _faithfulness(
    explainer: Explainer, samples: Sequence[Sample], metrics: set[str], reporter: Reporter
) -> np.ndarray:
    """Return for each sample the percentile of its map among control maps, NaN for the others."""
    values = np.full(len(samples), np.nan)
    if "faithfulness" not in metrics or explainer.default_method in explainer.disabled:
        return values
    chosen = sorted(range(len(samples)), key=lambda n: samples[n].sha256)[:_MOST_FAITHFUL]
    for done, n in enumerate(chosen, start=1):
        explanation = explainer.explain(read_image(samples[n].path))
        attribution = explanation.attributions[0]
        if attribution.status == "ok":
            result = measure_faithfulness(
                explainer.backend,
                explanation.forward.x[0],
                attribution,
                bank=control_bank(explainer.reference),
                control_maps=_CONTROL_MAPS,
                steps=_STEPS,
            )
            values[n] = result.percentile
        reporter.step("judging maps against controls", done, len(chosen))
    return values


def _localization(
    data: Dataset, samples: Sequence[Sample], explained: Sequence[ExplainedSample]
) -> np.ndarray:
    values = np.full(len(samples), np.nan)
    places = {sample.sha256: n for n, sample in enumerate(samples)}
    for item in explained:
        attribution, frame = item.placed
        mask = object_region(data, item.sample, (item.sample.width, item.sample.height))
        located = localize(attribution.values, frame, mask) if mask is not None else None
        if located is not None:
            values[places[item.sample.sha256]] = located.auroc
    return values


def _facts(
    bundle: Bundle, data: Dataset, metrics: set[str], issues: DataIssues | None, reporter: Reporter
) -> dict[str, float]:
    measures: dict[str, Callable[[], float]] = {
        "size_mb": lambda: (bundle.folder / WEIGHTS_FILE).stat().st_size / 1e6,
        "latency_ms": lambda: _latency(bundle),
        "leaked_pictures": lambda: float(len(data.shared)),
    }
    facts = {name: measure() for name, measure in measures.items() if name in metrics}
    if {"label_errors", "near_duplicates"} & metrics:
        if issues is None:
            embed = embed_by(bundle.model, data, reporter.step)
            issues = inspect_data(data, embed, progress=reporter.step)
        facts["label_errors"] = len(issues.label_errors) / issues.inspected
        facts["near_duplicates"] = float(len(issues.near_duplicates))
    if bundle.sanity is not None:
        facts["barred_methods"] = float(sum(check.disabled for check in bundle.sanity.methods.values()))
    return facts


def _shortcuts(
    explainer: Explainer, data: Dataset, metrics: set[str], reporter: Reporter
) -> tuple[dict[str, float], dict[str, str]]:
    """Return how many shortcuts a search finds, and their names; nothing where every method is barred."""
    if "shortcut_findings" not in metrics or explainer.default_method in explainer.disabled:
        return {}, {}
    images = dataset_images(data, _MOST_SEARCHED)
    search = find_shortcuts(explainer, images, progress=reporter.step)
    titles = (
        f"{explainer.model.classes[item.suspicion.label]}: {item.suspicion.kind}" for item in search.findings
    )
    name = "shortcut_findings"
    return {name: float(len(search.findings))}, {name: ", ".join(titles) or "none"}


def _latency(bundle: Bundle) -> float:
    x = bundle.probe[0]
    seconds = []
    with torch.no_grad():
        for _ in range(_TIMED):
            start = time.perf_counter()
            bundle.model(x)
            seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)
