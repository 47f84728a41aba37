"""One picture put to all the questions, as a page: why, how sure, how the map came about, what would change
the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import PIL.Image

from models import engines
from models.anatomy import anatomy
from models.bundle import Bundle
from models.errors import ExplanationError
from models.explain import cautions
from models.explain.attribution import Attribution, attribution
from models.explain.audit import Audit, audit
from models.explain.evidence_split import has_parts, last_with_parts, split
from models.explain.look import Evidence, look
from models.explain.methods import DEFAULT, METHODS
from models.explain.scaled import default_method, explain_scaled
from models.explain.targets import choose
from models.explain.trace import trace
from models.explain.what_if import WhatIf, by_map, what_if, workable
from models.geometry import Frame
from models.images import Image
from models.predictions import Prediction, rank
from models.render.overlay import data_uri, overlay
from models.render.sheets import field_picture, methods_sheet, split_sheet, sweep_sheet, trace_sheet
from pipelines import plots
from pipelines.pages import render

_SIDE = 720


@dataclass(frozen=True)
class Inspection:
    """What was found about one picture."""

    name: str
    image: Image
    frame: Frame
    ranking: list[Prediction]
    audit: Audit
    full_scale: float | None
    what_if: WhatIf | None
    pictures: dict[str, PIL.Image.Image]
    """Sheets by their titles."""
    warnings: list[str]

    @property
    def attribution(self) -> Attribution:
        """The map that is put to the questions."""
        return self.audit.attribution


def inspect(
    image: Image,
    name: str,
    bundle: Bundle,
    *,
    target: str | None = None,
    against: str | None = None,
    method: str | None = None,
    block: str | None = None,
    report: Callable[[str, int, int], None] | None = None,
) -> Inspection:
    """Ask everything about one picture, by the first method that is not barred unless one is named.

    Raises UnknownChoice for names that the model does not have, ExplanationError for a barred method.
    """
    engine = engines.prepare("eager", bundle.model, probe=bundle.probe[0])
    model = engine.model
    barred = bundle.sanity.barred() if bundle.sanity is not None else {}
    method = method or default_method(barred) or DEFAULT
    if method in barred:
        raise ExplanationError(f"The method {method} is barred for this model. {barred[method]}")
    x, frame = model.geometry.prepare(image)
    evidence = look(model, x[None], block=block, engine=engine)
    ranking = rank(evidence.logits[0], model.classes, model.scoring)
    asked = choose(model.classes, ranking, name=target, against=against)[0]
    (((found,), scale),) = explain_scaled(evidence, [[asked]], method=method)
    checks = audit(image, evidence, found, barred=barred, report=report)
    smaller, _ = workable(image)
    within = model.geometry.frame(smaller.width, smaller.height)
    changed = what_if(engine, smaller, by_map(within, found)) if found.status == "ok" else None
    score = next(item.score for item in ranking if item.index == asked.index)
    warnings = cautions.of_picture(image, frame) + cautions.of_map(found, score, scale)
    pictures = _pictures(image, frame, evidence, checks, grad_cam=DEFAULT not in barred)
    return Inspection(name, image, frame, ranking, checks, scale, changed, pictures, warnings)


def _pictures(
    image: Image, frame: Frame, evidence: Evidence, found: Audit, *, grad_cam: bool
) -> dict[str, PIL.Image.Image]:
    """Sheets by their names; the trace and the split are Grad-CAM's, and left out where that is barred."""
    model, target = evidence.model, found.attribution.target
    made = {
        "methods": methods_sheet(
            image,
            frame,
            found.maps,
            titles=[METHODS[each.method].title for each in found.maps],
        ),
        "sweep": sweep_sheet(image, frame, found.sweep or ()),
    }
    if grad_cam:
        made["trace"] = trace_sheet(image, frame, trace(evidence, 0, target, channels=2))
    block = last_with_parts(model)
    if grad_cam and has_parts(model, block):
        parts = split(model, evidence.x[0], target, block, engine=evidence.engine)
        maps = [attribution(target, part.values, method=DEFAULT, block=block) for part in parts.parts]
        made["split"] = split_sheet(image, frame, parts, maps)
    seen = anatomy(model).block(evidence.block)
    made["field"] = field_picture(image, frame, seen.field, seen.shape[0] // 2, seen.shape[1] // 2)
    return made


def page(found: Inspection, bundle: Bundle) -> str:
    """One HTML file that stands alone."""
    shown, origin = found.attribution, bundle.provenance
    judged = found.audit.faithfulness
    pictures = {key: data_uri(picture) for key, picture in found.pictures.items()}
    pictures["overlay"] = data_uri(
        overlay(found.image, found.frame, shown, max_side=_SIDE, full_scale=found.full_scale)
    )
    picture = found.image.pil.copy()
    picture.thumbnail((_SIDE, _SIDE))
    pictures["picture"] = data_uri(picture)
    if judged is not None:
        pictures["curves"] = data_uri(plots.faithfulness(judged))
    if found.what_if is not None:
        covered = found.what_if.covered.pil.copy()
        covered.thumbnail((_SIDE // 2, _SIDE // 2))
        pictures["covered"] = data_uri(covered)
    sanity = bundle.sanity.methods.get(shown.method) if bundle.sanity is not None else None
    return render(
        "inspection.html.j2",
        title=f"Why {shown.target.name}?",
        found=found,
        pictures=pictures,
        methods=[METHODS[each.method] for each in found.audit.maps],
        sanity=sanity.reason if sanity is not None else "not checked when the bundle was saved",
        facts={
            "picture": found.name,
            "picture's SHA-256": found.image.sha256,
            "method": f"{shown.method} at {shown.block}",
            **{key: str(value) for key, value in shown.settings.items()},
            "model": origin.model,
            "version": origin.version or "not from a registry",
            "run": origin.run_id or "unknown",
            "bundle digest": origin.digest,
        },
    )
