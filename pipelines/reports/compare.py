"""Two runs on the same held-out pictures: metrics, pictures that changed sides, and evidence that moved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image

from models.attribution.registry import DEFAULT_METHOD
from models.attribution.result import Attribution
from models.attribution.targets import make_target
from models.bundle import Bundle
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image
from models.images.encode import to_data_uri
from models.networks.transfer_model import TransferModel
from models.visualization.overlay import draw_overlay
from pipelines.data.dataset import Dataset
from pipelines.errors import RegistryError
from pipelines.evaluation.classification import EvaluatedSample, Evaluation
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
    """One picture as both models judge it; each explains its own answer."""

    judged: tuple[EvaluatedSample, EvaluatedSample]
    split: str
    maps: tuple[Attribution, Attribution]
    moved: float
    """Share of the evidence that lies elsewhere, 0 to 1."""

    @property
    def kind(self) -> str:
        """What happened to the picture: fixed, broken, other mistake, or same."""
        before, after = self.judged
        if before.right != after.right:
            return "fixed" if after.right else "broken"
        return "same" if before.answer == after.answer else "other mistake"


@dataclass(frozen=True, slots=True)
class RunComparison:
    """What was found, and the run that keeps it."""

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
) -> RunComparison:
    """Judge the models of two runs on the data's held-out splits and explain each answer.

    ``keep`` is given the page before anything is logged.
    Logs metrics and the page to a run of its own. Raises RegistryError when the runs have no models, or
    models that do not know the data's classes.
    """
    reporter = reporter or Reporter()
    bundles = (load_run_bundle(one, data), load_run_bundle(other, data))
    if bundles[0].model.scoring.task != bundles[1].model.scoring.task:
        tasks = [each.model.scoring.task for each in bundles]
        raise RegistryError(f"The runs answer different questions, {tasks[0]} and {tasks[1]}.")
    judged = tuple(evaluate_held_out(each, data, reporter) for each in bundles)
    pairs = [
        pair
        for before, after in zip(*judged, strict=True)
        for pair in _pairs(bundles, before, after, reporter)
    ]
    summary = _summary(judged, pairs, bundles, data)
    html = _page((one, other), bundles, judged, pairs, summary)
    keep(html)
    run_id = log_comparison(
        (one, other), _metrics(judged, pairs), {"compare/compare.html": html}, data.digest
    )
    return RunComparison(run_id, html, summary, pairs)


def _pairs(
    bundles: tuple[Bundle, Bundle], before: Evaluation, after: Evaluation, reporter: Reporter
) -> list[ComparedSample]:
    both = list(zip(before.judged, after.judged, strict=True))
    found: list[ComparedSample] = []
    for start in range(0, len(both), _BATCH):
        part = both[start : start + _BATCH]
        maps = [_maps(each.model, [pair[place] for pair in part]) for place, each in enumerate(bundles)]
        for pair, first, second in zip(part, *maps, strict=True):
            moved = evidence_moved(_on_one_grid(first, second), _on_one_grid(second, first))
            found.append(ComparedSample(pair, before.split, (first, second), moved))
        reporter.step("comparing evidence", len(found), len(both))
    return found


def _maps(model: TransferModel, judged: Sequence[EvaluatedSample]) -> list[Attribution]:
    explainer = Explainer(model)
    images = [explainer.prepare(read_image(item.sample.path)) for item in judged]
    targets = [[make_target(model.classes, item.top.index)] for item in judged]
    maps = explainer.attribute(images, targets, options=ExplainOptions(method=DEFAULT_METHOD))
    return [attribution for (attribution,) in maps]


def _on_one_grid(wanted: Attribution, other: Attribution) -> list[list[float]]:
    """The map with each cell repeated until both maps have the same grid: two backbones may differ in
    theirs.
    """
    rows = int(np.lcm(wanted.rows, other.rows)) // wanted.rows
    cols = int(np.lcm(wanted.cols, other.cols)) // wanted.cols
    repeated: list[list[float]] = wanted.values.repeat(rows, axis=0).repeat(cols, axis=1).tolist()
    return repeated


def _metrics(judged: tuple[list[Evaluation], ...], pairs: Sequence[ComparedSample]) -> dict[str, float]:
    metrics: dict[str, float] = {}
    for before, after in zip(*judged, strict=True):
        for name in before.metrics.keys() & after.metrics.keys():
            metrics[f"{before.split}_{name}_change"] = after.metrics[name] - before.metrics[name]
        here = [pair for pair in pairs if pair.split == before.split]
        for kind in ("fixed", "broken", "other mistake"):
            metrics[f"{before.split}_{kind.replace(' ', '_')}"] = sum(pair.kind == kind for pair in here)
        metrics[f"{before.split}_evidence_moved"] = float(np.mean([pair.moved for pair in here]))
    return metrics


def _summary(
    judged: tuple[list[Evaluation], ...],
    pairs: Sequence[ComparedSample],
    bundles: tuple[Bundle, Bundle],
    data: Dataset,
) -> list[str]:
    found = []
    for before, after in zip(*judged, strict=True):
        here = [pair for pair in pairs if pair.split == before.split]
        fixed, broken = (sum(pair.kind == kind for pair in here) for kind in ("fixed", "broken"))
        found.append(
            f"{before.split}: accuracy {before.metrics['accuracy']:.3f} → {after.metrics['accuracy']:.3f}; "
            f"of {len(here)} pictures {fixed} were fixed and {broken} broken."
        )
    same = [pair for pair in pairs if pair.kind == "same" and pair.judged[0].right]
    far = sum(pair.moved >= _MOVED_FAR for pair in same)
    found.append(
        f"{far} of the {len(same)} pictures that both get right are right for another reason: half or more "
        "of the evidence lies elsewhere."
    )
    for name, each in zip(("first", "second"), bundles, strict=True):
        if each.manifest["dataset"].get("digest") != data.digest:
            found.append(
                f"The {name} model comes from another data set: it may have been trained on these pictures."
            )
    return found


def _page(
    runs_compared: tuple[str, str],
    bundles: tuple[Bundle, Bundle],
    judged: tuple[list[Evaluation], ...],
    pairs: Sequence[ComparedSample],
    summary: Sequence[str],
) -> str:
    def some(kind: str) -> list[ComparedSample]:
        return [pair for pair in pairs if pair.kind == kind]

    elsewhere = sorted((pair for pair in some("same") if pair.judged[0].right), key=lambda pair: -pair.moved)
    sections = [
        ("Broken", "Right before, wrong now.", some("broken")),
        ("Fixed", "Wrong before, right now.", some("fixed")),
        ("Another mistake", "Wrong before and now, with different answers.", some("other mistake")),
        ("Right for another reason", "The same right answer, the evidence moved furthest.", elsewhere[:12]),
    ]
    return render_template(
        "compare.html.j2",
        title=f"{_called(bundles[0])} and {_called(bundles[1])}",
        names=[_called(each) for each in bundles],
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
            for before, after in zip(*judged, strict=True)
        ],
        plot=to_data_uri(plot_evidence_movement([(pair.kind, pair.moved) for pair in pairs])),
        sections=[
            {"name": name, "lead": lead, "count": len(found),
             "cases": [_for_page(bundles, pair) for pair in found[:_MOST_SHOWN]]}
            for name, lead, found in sections
        ],
        facts={
            "first run": runs_compared[0],
            "first bundle": bundles[0].provenance.digest,
            "second run": runs_compared[1],
            "second bundle": bundles[1].provenance.digest,
        },
    )  # fmt: skip


def _called(each: Bundle) -> str:
    origin = each.provenance
    return f"{origin.model} v{origin.version}" if origin.version else origin.model


def _for_page(bundles: tuple[Bundle, Bundle], pair: ComparedSample) -> dict[str, Any]:
    image = read_image(pair.judged[0].sample.path)
    picture = image.pil.copy()
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))

    def shown(place: int) -> PIL.Image.Image:
        _, frame = bundles[place].model.geometry.prepare(image)
        return draw_overlay(image, frame, pair.maps[place], max_side=_SHOWN_SIDE)

    return {
        "name": pair.judged[0].sample.name,
        "split": pair.split,
        "truth": pair.judged[0].truth,
        "picture": to_data_uri(picture),
        "maps": [to_data_uri(shown(place)) for place in (0, 1)],
        "answers": [(item.answer, item.top.score, item.right) for item in pair.judged],
        "strongest": [each.maximum for each in pair.maps],
        "moved": pair.moved,
    }
