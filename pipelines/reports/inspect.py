"""One picture put to all the questions, as a page: why, how sure, how the map came about, what would change
the answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import PIL.Image

from models.attribution.forward import ForwardPass, run_forward
from models.attribution.registry import DEFAULT_METHOD, METHODS
from models.attribution.result import Attribution, make_attribution
from models.attribution.scaling import attribute_scaled, default_method
from models.attribution.targets import choose_targets
from models.backends.registry import create_backend
from models.bundle import Bundle
from models.errors import ExplanationError
from models.images.decode import Image
from models.images.encode import to_data_uri
from models.images.geometry import Frame
from models.introspection.cover_test import CoverTest, limit_size, mask_from_map, run_cover_test
from models.introspection.decomposition import decompose, has_parts, last_block_with_parts
from models.introspection.gradcam_trace import trace_grad_cam
from models.metrics.audit import Audit, run_audit
from models.metrics.warnings import image_warnings, map_warnings
from models.networks.predictions import Prediction, rank_classes
from models.networks.summary import summarize_network
from models.visualization.figures import (
    draw_decomposition_figure,
    draw_methods_figure,
    draw_receptive_field,
    draw_sweep_figure,
    draw_trace_figure,
)
from models.visualization.overlay import draw_overlay
from pipelines.evaluation.plots import plot_faithfulness
from pipelines.reports.html import render_template

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
    what_if: CoverTest | None
    pictures: dict[str, PIL.Image.Image]
    """Sheets by their titles."""
    warnings: list[str]

    @property
    def attribution(self) -> Attribution:
        """The map that is put to the questions."""
        return self.audit.attribution


def inspect_image(
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
    engine = create_backend("eager", bundle.model, probe=bundle.probe[0])
    model = engine.model
    barred = bundle.sanity.barred() if bundle.sanity is not None else {}
    method = method or default_method(barred) or DEFAULT_METHOD
    if method in barred:
        raise ExplanationError(f"The method {method} is barred for this model. {barred[method]}")
    x, frame = model.geometry.prepare(image)
    evidence = run_forward(model, x[None], block=block, engine=engine)
    ranking = rank_classes(evidence.logits[0], model.classes, model.scoring)
    asked = choose_targets(model.classes, ranking, name=target, against=against)[0]
    (((found,), scale),) = attribute_scaled(evidence, [[asked]], method=method)
    checks = run_audit(image, evidence, found, barred=barred, report=report)
    smaller, _ = limit_size(image)
    within = model.geometry.frame(smaller.width, smaller.height)
    changed = run_cover_test(engine, smaller, mask_from_map(within, found)) if found.status == "ok" else None
    score = next(item.score for item in ranking if item.index == asked.index)
    warnings = image_warnings(image, frame) + map_warnings(found, score, scale)
    pictures = _pictures(image, frame, evidence, checks, grad_cam=DEFAULT_METHOD not in barred)
    return Inspection(name, image, frame, ranking, checks, scale, changed, pictures, warnings)


def _pictures(
    image: Image, frame: Frame, evidence: ForwardPass, found: Audit, *, grad_cam: bool
) -> dict[str, PIL.Image.Image]:
    """Sheets by their names; the trace and the split are Grad-CAM's, and left out where that is barred."""
    model, target = evidence.model, found.attribution.target
    made = {
        "methods": draw_methods_figure(
            image,
            frame,
            found.maps,
            titles=[METHODS[each.method].title for each in found.maps],
        ),
        "sweep": draw_sweep_figure(image, frame, found.sweep or ()),
    }
    if grad_cam:
        made["trace"] = draw_trace_figure(image, frame, trace_grad_cam(evidence, 0, target, channels=2))
    block = last_block_with_parts(model)
    if grad_cam and has_parts(model, block):
        parts = decompose(model, evidence.x[0], target, block, engine=evidence.engine)
        maps = [
            make_attribution(target, part.values, method=DEFAULT_METHOD, block=block) for part in parts.parts
        ]
        made["split"] = draw_decomposition_figure(image, frame, parts, maps)
    seen = summarize_network(model).block(evidence.block)
    made["field"] = draw_receptive_field(image, frame, seen.field, seen.shape[0] // 2, seen.shape[1] // 2)
    return made


def render_inspection(found: Inspection, bundle: Bundle) -> str:
    """One HTML file that stands alone."""
    shown, origin = found.attribution, bundle.provenance
    judged = found.audit.faithfulness
    pictures = {key: to_data_uri(picture) for key, picture in found.pictures.items()}
    pictures["overlay"] = to_data_uri(
        draw_overlay(found.image, found.frame, shown, max_side=_SIDE, full_scale=found.full_scale)
    )
    picture = found.image.pil.copy()
    picture.thumbnail((_SIDE, _SIDE))
    pictures["picture"] = to_data_uri(picture)
    if judged is not None:
        pictures["curves"] = to_data_uri(plot_faithfulness(judged))
    if found.what_if is not None:
        covered = found.what_if.covered.pil.copy()
        covered.thumbnail((_SIDE // 2, _SIDE // 2))
        pictures["covered"] = to_data_uri(covered)
    sanity = bundle.sanity.methods.get(shown.method) if bundle.sanity is not None else None
    return render_template(
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
