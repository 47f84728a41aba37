"""The misclassification gallery: each wrong picture with the evidence for the predicted and for the true
class.

The two maps share one scale, so that a faint map looks faint beside a strong one. Comes as one self-contained
HTML page and as a contact sheet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import PIL.Image
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from models import images
from models.explain.attribution import MEANINGS, Attribution
from models.explain.grad_cam import grad_cam, look
from models.render.contact_sheet import Tile, contact_sheet
from models.render.overlay import data_uri, overlay
from models.transfer import TransferModel
from pipelines.evaluate import Evaluation, Judged

_SHOWN_SIDE = 360
_TEMPLATES = Path(__file__).parents[1] / "templates"


@dataclass(frozen=True, slots=True)
class Case:
    """One picture of the gallery."""

    judged: Judged
    split: str
    picture: PIL.Image.Image
    predicted: PIL.Image.Image
    """Overlay for the predicted class."""
    true: PIL.Image.Image
    """Overlay for the true class, on the same scale."""
    notes: tuple[str, ...]


def cases(
    model: TransferModel, judged: Sequence[Judged], split: str, *,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> list[Case]:  # fmt: skip
    """Explain each judged picture for its predicted and its true class."""
    made: list[Case] = []
    for item in judged:
        made.append(_case(model, item, split))
        report(len(made), len(judged))
    return made


def sheet(found: Sequence[Case], *, title: str) -> PIL.Image.Image:
    """Rows of picture, map of the predicted class, map of the true class; two cases side by side."""
    tiles: list[Tile] = []
    for case in found:
        top = case.judged.top
        tiles += [
            Tile(case.picture, case.judged.sample.name.rsplit("/", 1)[-1], case.split),
            Tile(case.predicted, f"predicted {top.label}", f"{top.score:.0%}"),
            Tile(case.true, f"true {case.judged.truth}", f"{case.judged.truth_score:.0%}"),
        ]
    return contact_sheet(tiles, columns=6 if len(found) > 1 else 3, title=title)


def page(
    evaluations: Sequence[Evaluation], wrong: Sequence[Case], close: Sequence[Case], *, title: str,
    facts: dict[str, Any],
) -> str:  # fmt: skip
    """The gallery as one HTML page without any outside reference; ``facts`` are shown as its provenance."""
    return render(
        "gallery.html.j2",
        title=title,
        evaluations=[
            {
                "split": each.split,
                "count": len(each.judged),
                "wrong": len(each.wrong),
                "metrics": each.metrics,
                "classes": each.classes,
                "confusion": each.confusion.tolist(),
            }
            for each in evaluations
        ],
        sections=[
            {
                "name": "Mistakes",
                "lead": "The surest mistakes first.",
                "cases": [_for_page(case) for case in wrong],
            },
            {
                "name": "Close calls",
                "lead": "Right answers, the least sure first: where the next mistakes will come from.",
                "cases": [_for_page(case) for case in close],
            },
        ],
        facts=facts,
    )


def render(template: str, **values: Any) -> str:
    """Fill one of the project's page templates; names and captions are escaped."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template(template).render(made=made, **values)


def _case(model: TransferModel, judged: Judged, split: str) -> Case:
    image = images.read(judged.sample.path)
    x, frame = model.geometry.prepare(image)
    evidence = look(model, x.unsqueeze(0))
    predicted, true = grad_cam(model, evidence, 0, [judged.top.index, judged.sample.label])
    scale = max(predicted.maximum, true.maximum)
    notes = tuple(
        f"{each.label}: {MEANINGS[each.status]}" for each in (predicted, true) if each.status != "ok"
    )

    def shown(attribution: Attribution) -> PIL.Image.Image:
        return overlay(image, frame, attribution, max_side=_SHOWN_SIDE, full_scale=scale)

    picture = image.pil.copy()
    picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
    return Case(judged, split, picture, shown(predicted), shown(true), notes)


def _for_page(case: Case) -> dict[str, Any]:
    return {
        "name": case.judged.sample.name,
        "split": case.split,
        "truth": case.judged.truth,
        "truth_score": case.judged.truth_score,
        "predicted": case.judged.top.label,
        "predicted_score": case.judged.top.score,
        "right": case.judged.right,
        "picture": data_uri(case.picture),
        "predicted_map": data_uri(case.predicted),
        "true_map": data_uri(case.true),
        "notes": case.notes,
    }
