"""Two runs on the same held-out images: metrics, images that changed sides, and evidence that moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch

from models.attribution.targets import make_target
from models.bundle import Bundle
from models.devices import CPU
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image
from models.images.encode import to_data_uri
from models.networks.transfer_model import TransferModel
from models.visualization.overlay import draw_overlay
from pipelines.data.dataset import Dataset, match_classes
from pipelines.errors import RegistryError
from pipelines.evaluation.classification import EvaluatedSample, Evaluation
from pipelines.evaluation.explanation_drift import PlacedMap, on_one_grid
from pipelines.evaluation.phase_snapshots import evidence_moved
from pipelines.evaluation.plots import plot_evidence_movement
from pipelines.progress import Reporter
from pipelines.reports.html import render_template
from pipelines.reports.review import evaluate_held_out, load_run_bundle
from pipelines.tracking.runs import log_comparison

_SHOWN_SIDE = 360
_MOST_SHOWN = 24
_MOVED_FAR = 0.5
_BATCH = 16


@dataclass(frozen=True, slots=True)
class ComparedSample:
    """An image as both models evaluate it; each explains its own answer."""

    evaluated: tuple[EvaluatedSample, EvaluatedSample]
    split: str
    maps: tuple[PlacedMap, PlacedMap]
    moved: float | None
    """Share of the evidence that lies elsewhere, 0 to 1; None where one of the maps is empty."""

    @property
    def kind(self) -> str:
        """What happened to the image: fixed, broken, other mistake, or same."""
        before, after = self.evaluated
        if before.is_correct != after.is_correct:
            return "fixed" if after.is_correct else "broken"
        return "same" if before.answer == after.answer else "other mistake"


@dataclass(frozen=True, slots=True)
class RunComparison:
    """The comparison of two runs, and the run that keeps it."""

    run_id: str
    html: str
    summary: list[str]
    pairs: list[ComparedSample]


def compare_runs(
    one: str,
    other: str,
    data: Dataset,
    *,
    reporter: Reporter | None = None,
    keep: Callable[[str], object] = lambda html: None,
    device: torch.device = CPU,
) -> RunComparison:
    """Judge the models of two runs on the data's held-out splits and explain each answer.

    ``keep`` is given the page before anything is logged.
    Logs metrics and the page to a run of its own. Raises RegistryError when the runs have no models, or
    models that do not know the data's classes.
    """
    reporter = reporter or Reporter()
    bundles = (load_run_bundle(one, data, device=device), load_run_bundle(other, data, device=device))
    if bundles[0].model.scoring.task != bundles[1].model.scoring.task:
        tasks = [bundle.model.scoring.task for bundle in bundles]
        raise RegistryError(f"The runs answer different questions, {tasks[0]} and {tasks[1]}.")
    # Each model has its classes in an order of its own; what is compared goes by their names.
    evaluations = tuple(
        evaluate_held_out(bundle, match_classes(data, bundle.model.classes), reporter) for bundle in bundles
    )
    pairs = [
        pair
        for before, after in zip(*evaluations, strict=True)
        for pair in _pairs(bundles, before, after, reporter)
    ]
    summary = _summary(evaluations, pairs, bundles, data)
    html = _page((one, other), bundles, evaluations, pairs, summary)
    keep(html)
    run_id = log_comparison(
        (one, other), _metrics(evaluations, pairs), {"compare/compare.html": html}, data.digest
    )
    return RunComparison(run_id, html, summary, pairs)


def _pairs(
    bundles: tuple[Bundle, Bundle], before: Evaluation, after: Evaluation, reporter: Reporter
) -> list[ComparedSample]:
    both = list(zip(before.samples, after.samples, strict=True))
    pairs: list[ComparedSample] = []
    for start in range(0, len(both), _BATCH):
        part = both[start : start + _BATCH]
        maps = [_maps(bundle.model, [pair[place] for pair in part]) for place, bundle in enumerate(bundles)]
        for pair, first, second in zip(part, *maps, strict=True):
            moved = evidence_moved(*on_one_grid(first, second))
            pairs.append(ComparedSample(pair, before.split, (first, second), moved))
        reporter.step("comparing evidence", len(pairs), len(both))
    return pairs


def _maps(model: TransferModel, evaluated: Sequence[EvaluatedSample]) -> list[PlacedMap]:
    explainer = Explainer(model)
    images = [explainer.prepare(read_image(item.sample.path)) for item in evaluated]
    targets = [[make_target(model.classes, item.top.index)] for item in evaluated]
    maps = explainer.attribute(
        images, targets, options=ExplainOptions(method=explainer.default_method, quick=True)
    )
    return [(attribution, image.frame) for (attribution,), image in zip(maps, images, strict=True)]


def _metrics(evaluations: tuple[list[Evaluation], ...], pairs: Sequence[ComparedSample]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for before, after in zip(*evaluations, strict=True):
        for name in before.metrics.keys() & after.metrics.keys():
            metrics[f"{before.split}_{name}_change"] = after.metrics[name] - before.metrics[name]
        here = [pair for pair in pairs if pair.split == before.split]
        for kind in ("fixed", "broken", "other mistake"):
            metrics[f"{before.split}_{kind.replace(' ', '_')}"] = sum(pair.kind == kind for pair in here)
        if moved := [pair.moved for pair in here if pair.moved is not None]:
            metrics[f"{before.split}_evidence_moved"] = float(np.mean(moved))
    return metrics


def _summary(
    evaluations: tuple[list[Evaluation], ...],
    pairs: Sequence[ComparedSample],
    bundles: tuple[Bundle, Bundle],
    data: Dataset,
) -> list[str]:
    sentences = []
    for before, after in zip(*evaluations, strict=True):
        here = [pair for pair in pairs if pair.split == before.split]
        fixed, broken = (sum(pair.kind == kind for pair in here) for kind in ("fixed", "broken"))
        sentences.append(
            f"{before.split}: accuracy {before.metrics['accuracy']:.3f} → {after.metrics['accuracy']:.3f}; "
            f"of {len(here)} pictures {fixed} were fixed and {broken} broken."
        )
    same = [pair for pair in pairs if pair.kind == "same" and pair.evaluated[0].is_correct]
    compared = [pair.moved for pair in same if pair.moved is not None]
    far = sum(moved >= _MOVED_FAR for moved in compared)
    empty = len(same) - len(compared)
    sentences.append(
        f"{far} of the {len(compared)} pictures that both get right are right for another reason: half or "
        "more of the evidence lies elsewhere."
        + (f" {empty} more are not compared: one of the two maps is empty." if empty else "")
    )
    for name, bundle in zip(("first", "second"), bundles, strict=True):
        if bundle.manifest["dataset"].get("digest") != data.digest:
            sentences.append(
                f"The {name} model comes from another data set: it may have been trained on these pictures."
            )
    return sentences


def _page(
    runs_compared: tuple[str, str],
    bundles: tuple[Bundle, Bundle],
    evaluations: tuple[list[Evaluation], ...],
    pairs: Sequence[ComparedSample],
    summary: Sequence[str],
) -> str:
    def some(kind: str) -> list[ComparedSample]:
        return [pair for pair in pairs if pair.kind == kind]

    elsewhere = sorted(
        (pair for pair in some("same") if pair.evaluated[0].is_correct and pair.moved is not None),
        key=lambda pair: -(pair.moved or 0.0),
    )
    sections = [
        ("Broken", "Right before, wrong now.", some("broken")),
        ("Fixed", "Wrong before, right now.", some("fixed")),
        ("Another mistake", "Wrong before and now, with different answers.", some("other mistake")),
        ("Right for another reason", "The same right answer, the evidence moved furthest.", elsewhere[:12]),
    ]
    return render_template(
        "compare.html.j2",
        title=f"{_called(bundles[0])} and {_called(bundles[1])}",
        names=[_called(bundle) for bundle in bundles],
        summary=summary,
        splits=[
            {
                "split": before.split,
                "rows": [
                    (name, before.metrics[name], after.metrics[name])
                    for name in before.metrics
                    if name in after.metrics
                ],
            }
            for before, after in zip(*evaluations, strict=True)
        ],
        plot=to_data_uri(plot_evidence_movement([(p.kind, p.moved) for p in pairs if p.moved is not None])),
        sections=[
            {"name": name, "lead": lead, "count": len(section_pairs),
             "cases": [_for_page(pair) for pair in section_pairs[:_MOST_SHOWN]]}
            for name, lead, section_pairs in sections
        ],
        facts={
            "first run": runs_compared[0],
            "first bundle": bundles[0].provenance.digest,
            "second run": runs_compared[1],
            "second bundle": bundles[1].provenance.digest,
        },
    )  # fmt: skip


def _called(bundle: Bundle) -> str:
    origin = bundle.provenance
    return f"{origin.model} v{origin.version}" if origin.version else origin.model


def _for_page(pair: ComparedSample) -> dict[str, Any]:
    image = read_image(pair.evaluated[0].sample.path)
    pil_image = image.pil.copy()
    pil_image.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))

    def shown(place: int) -> PIL.Image.Image:
        attribution, frame = pair.maps[place]
        return draw_overlay(image, frame, attribution, max_side=_SHOWN_SIDE)

    return {
        "name": pair.evaluated[0].sample.name,
        "split": pair.split,
        "truth": pair.evaluated[0].truth,
        "picture": to_data_uri(pil_image),
        "maps": [to_data_uri(shown(place)) for place in (0, 1)],
        "answers": [(item.answer, item.top.score, item.is_correct) for item in pair.evaluated],
        "strongest": [attribution.maximum for attribution, _ in pair.maps],
        "moved": pair.moved,
    }
