"""One image put to all the questions, as a page: why, how sure, how the map came about, what would change
the answer.
"""

from __future__ import annotations

from dataclasses import dataclass

import PIL.Image

from models.attribution.registry import DEFAULT_METHOD, METHODS
from models.bundle import Bundle
from models.explainer import Explainer, ExplainOptions, Explanation
from models.images.decode import Image
from models.images.encode import to_data_uri
from models.introspection.cover_test import CoverTest, limit_size, mask_from_map, run_cover_test
from models.introspection.decomposition import has_parts, last_block_with_parts
from models.introspection.gradcam_trace import trace_grad_cam
from models.metrics.audit import Audit, run_audit
from models.networks.summary import summarize_network
from models.progress import Progress, no_progress
from models.reference import control_bank
from models.visualization.figures import (
    draw_block_parts,
    draw_methods_figure,
    draw_receptive_field,
    draw_sweep_figure,
    draw_trace_figure,
)
from pipelines.evaluation.plots import plot_faithfulness
from pipelines.reports.html import render_template

_SIDE = 720


@dataclass(frozen=True)
class Inspection:
    """Everything that was asked about one image."""

    name: str
    explanation: Explanation
    audit: Audit
    cover_test: CoverTest | None
    """The scores with the hottest part covered; None without a map."""
    figures: dict[str, PIL.Image.Image]
    """Figures by name."""


def inspect_image(
    image: Image,
    name: str,
    bundle: Bundle,
    options: ExplainOptions | None = None,
    *,
    progress: Progress = no_progress,
) -> Inspection:
    """Ask everything about one image, by the first method that is not disabled unless one is named.

    Raises UnknownChoice for names that the model does not have, ExplanationError for a disabled method.
    """
    explainer = Explainer(bundle)
    explanation = explainer.explain(image, options)
    attribution = explanation.attributions[0]
    audit = run_audit(
        image,
        explanation.forward,
        attribution,
        disabled=explainer.disabled,
        bank=control_bank(explainer.reference),
        progress=progress,
    )
    cover_test = _cover_hottest(explainer, explanation) if attribution.status == "ok" else None
    figures = _figures(explanation, audit, grad_cam=DEFAULT_METHOD not in explainer.disabled)
    return Inspection(name, explanation, audit, cover_test, figures)


def _cover_hottest(explainer: Explainer, explanation: Explanation) -> CoverTest:
    image, _ = limit_size(explanation.image)
    frame = explainer.model.geometry.frame(image.width, image.height)
    mask = mask_from_map(frame, explanation.attributions[0])
    return run_cover_test(explainer.backend, image, mask)


def _figures(explanation: Explanation, audit: Audit, *, grad_cam: bool) -> dict[str, PIL.Image.Image]:
    """Return figures by name; the trace and the split are Grad-CAM's, and left out where that is disabled."""
    image, frame, forward = explanation.image, explanation.frame, explanation.forward
    model, target = forward.model, audit.attribution.target
    titles = [METHODS[item.method].title for item in audit.maps]
    figures = {
        "methods": draw_methods_figure(image, frame, audit.maps, titles=titles),
        "sweep": draw_sweep_figure(image, frame, audit.sweep or ()),
    }
    if grad_cam:
        figures["trace"] = draw_trace_figure(image, frame, trace_grad_cam(forward, 0, target, channels=2))
    block = last_block_with_parts(model)
    if grad_cam and has_parts(model, block):
        figures["split"] = draw_block_parts(image, frame, forward, target, block)
    summary = summarize_network(model).block(forward.block)
    rows, cols = summary.shape[:2]
    figures["field"] = draw_receptive_field(image, frame, summary.field, rows // 2, cols // 2)
    return figures


def render_inspection(inspection: Inspection, bundle: Bundle) -> str:
    """Return one HTML file that stands alone."""
    explanation, attribution = inspection.explanation, inspection.audit.attribution
    origin = bundle.provenance
    check = bundle.sanity.methods.get(attribution.method) if bundle.sanity is not None else None
    return render_template(
        "inspection.html.j2",
        title=f"Why {attribution.target.name}?",
        inspection=inspection,
        explanation=explanation,
        attribution=attribution,
        pictures=_page_images(inspection),
        methods=[METHODS[item.method] for item in inspection.audit.maps],
        sanity=check.reason if check is not None else "not checked when the bundle was saved",
        facts={
            "picture": inspection.name,
            "picture's SHA-256": explanation.image.sha256,
            "method": f"{attribution.method} at {attribution.block}",
            **{key: str(value) for key, value in attribution.settings.items()},
            "model": origin.model,
            "version": origin.version or "not from a registry",
            "run": origin.run_id or "unknown",
            "bundle digest": origin.digest,
        },
    )


def _page_images(inspection: Inspection) -> dict[str, str]:
    """Return the page's images as data URIs."""
    explanation = inspection.explanation
    images = {
        **inspection.figures,
        "overlay": explanation.overlay(inspection.audit.attribution, max_side=_SIDE),
        "picture": _thumbnail(explanation.image.pil, _SIDE),
    }
    if inspection.audit.faithfulness is not None:
        images["curves"] = plot_faithfulness(inspection.audit.faithfulness)
    if inspection.cover_test is not None:
        images["covered"] = _thumbnail(inspection.cover_test.covered.pil, _SIDE // 2)
    return {name: to_data_uri(image) for name, image in images.items()}


def _thumbnail(image: PIL.Image.Image, side: int) -> PIL.Image.Image:
    small = image.copy()
    small.thumbnail((side, side))
    return small
