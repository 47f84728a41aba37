"""The review of a model: a summary to read in a minute, then its mistakes to look at, the worst first.

Comes as one self-contained HTML page and as contact sheets. The two maps of an image share one scale, so
that a faint map looks faint beside a strong one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import PIL.Image

from models.images.encode import to_data_uri
from models.visualization.contact_sheet import Tile, draw_contact_sheet
from pipelines.evaluation.classification import Evaluation
from pipelines.reports.cases import ReviewCase
from pipelines.reports.data_issues import ShownPair
from pipelines.reports.html import render_template

_MOST_IN_TABLE = 40
"""Most classes of a confusion table on a page; with more, only the table of class metrics is shown."""


def draw_gallery_figure(cases: Sequence[ReviewCase], *, title: str) -> PIL.Image.Image:
    """Draw rows of image, map of the answer, map of the class that it is held against, their difference."""
    tiles: list[Tile] = []
    for case in cases:
        predicted, other = case.evaluated.predicted, case.other
        tiles += [
            Tile(case.image, case.evaluated.sample.name.rsplit("/", 1)[-1], case.split),
            Tile(case.predicted, f"answered {predicted.label}", f"{predicted.score:.0%}"),
            Tile(case.beside, f"{_role(case)} {other.label}", f"{other.score:.0%}"),
            Tile(case.contrast, "the difference", f"orange {predicted.label}, blue {other.label}"),
        ]
    return draw_contact_sheet(tiles, columns=8 if len(cases) > 1 else 4, title=title)


def render_gallery(
    evaluations: Sequence[Evaluation],
    wrong: Sequence[ReviewCase],
    close: Sequence[ReviewCase],
    *,
    title: str,
    summary: Sequence[str],
    facts: Mapping[str, Any],
    doubted: Sequence[ReviewCase] = (),
    pairs: Sequence[ShownPair] = (),
) -> str:
    """Render the review as one HTML page without any outside reference; ``facts`` are listed as its
    provenance.
    """
    return render_template(
        "gallery.html.j2",
        title=title,
        summary=summary,
        classes=evaluations[0].classes,
        evaluations=[_split(evaluation) for evaluation in evaluations],
        sections=[
            {
                "name": "Mistakes",
                "truth": "true",
                "lead": "The worst first.",
                "cases": [_for_page(case) for case in wrong],
            },
            {
                "name": "Close calls",
                "truth": "true",
                "lead": "Right answers, the least sure first: where the next mistakes will come from.",
                "cases": [_for_page(case) for case in close],
            },
            {
                "name": "Labels that may be wrong",
                "truth": "labelled",
                "lead": "What the other pictures speak against, the least credible first. A person decides.",
                "cases": [_for_page(case) for case in doubted],
            },
        ],
        pairs=pairs,
        facts=facts,
    )


def _role(case: ReviewCase) -> str:
    """Return what the class is that the answer is held against."""
    return "runner-up" if case.evaluated.is_correct else "true"


def _split(evaluation: Evaluation) -> dict[str, Any]:
    fits = evaluation.confusion.ndim == 2 and len(evaluation.classes) <= _MOST_IN_TABLE
    return {
        "split": evaluation.split,
        "count": len(evaluation.samples),
        "wrong": len(evaluation.wrong),
        "metrics": evaluation.metrics,
        "classes": evaluation.classes,
        "confusion": evaluation.confusion.tolist() if fits else [],
        "answers": sum(reliability_bin.answers for reliability_bin in evaluation.reliability),
        "table": [asdict(row) for row in evaluation.table],
        "bins": [
            asdict(reliability_bin) for reliability_bin in evaluation.reliability if reliability_bin.answers
        ],
    }


def _for_page(case: ReviewCase) -> dict[str, Any]:
    evaluated = case.evaluated
    labels = {item.label for item in evaluated.ranking if item.index in evaluated.sample.labels}
    predicted_labels = {item.label for item in evaluated.ranking if item.accepted}
    return {
        "name": evaluated.sample.name,
        "split": case.split,
        "truth": evaluated.truth,
        "role": _role(case),
        "other": case.other.label,
        "other_score": case.other.score,
        "instead": case.instead,
        "answer": evaluated.answer,
        "said": evaluated.predicted.label,
        "said_score": evaluated.predicted.score,
        "true_classes": sorted(labels),
        "answered_classes": sorted(predicted_labels),
        "seen_share": case.seen_share,
        "right": evaluated.is_correct,
        "picture": to_data_uri(case.image),
        "predicted_map": to_data_uri(case.predicted),
        "other_map": to_data_uri(case.beside),
        "contrast": to_data_uri(case.contrast),
        "one_class": evaluated.predicted.index == case.other.index,
        "neighbours": [
            {"label": n.label, "name": n.name, "similarity": n.similarity, "same": n.same_class,
             "picture": to_data_uri(n.image)}
            for n in case.neighbours
        ],
        "notes": case.notes,
    }  # fmt: skip
