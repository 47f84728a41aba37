"""What a job may ask of each image beyond its map: the same checks and figures as for a single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import PIL.Image

from models.attribution.registry import METHODS
from models.errors import UnknownChoice
from models.explainer import Explainer, Explanation
from models.introspection.cover_test import limit_size, mask_from_map, run_cover_test
from models.introspection.decomposition import has_parts, last_block_with_parts
from models.introspection.gradcam_trace import trace_grad_cam
from models.metrics.audit import Audit, run_audit
from models.reference import control_bank
from models.visualization.figures import (
    draw_block_parts,
    draw_methods_figure,
    draw_sweep_figure,
    draw_trace_figure,
)

JobCheck = Literal["faithfulness", "agreement", "shifts", "sweep", "what_if"]
JobFigure = Literal["methods", "sweep", "trace", "split"]
JOB_CHECKS: tuple[JobCheck, ...] = get_args(JobCheck)
JOB_FIGURES: tuple[JobFigure, ...] = get_args(JobFigure)
_CHECK_OF_FIGURE = {"methods": "agreement", "sweep": "sweep"}
"""Figures that show what a check measured."""
CHECK_COLUMNS = (
    "faithfulness",
    "faithfulness_percentile",
    "verdict",
    "agreement",
    "shift_spread",
    "shift_correlation",
    "best_stage",
    "hottest_change",
)
"""Columns of a row that stay empty unless they are asked for."""


def check_job_options(
    checks: Sequence[str], figures: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names in a fixed order, each once; raises UnknownChoice."""
    for name in checks:
        if name not in JOB_CHECKS:
            raise UnknownChoice("check", name, JOB_CHECKS)
    for name in figures:
        if name not in JOB_FIGURES:
            raise UnknownChoice("sheet", name, JOB_FIGURES)
    needed = {*checks, *(_CHECK_OF_FIGURE[name] for name in figures if name in _CHECK_OF_FIGURE)}
    return (
        tuple(name for name in JOB_CHECKS if name in needed),
        tuple(name for name in JOB_FIGURES if name in figures),
    )


def run_job_checks(
    explainer: Explainer, explanation: Explanation, *, checks: Sequence[str], figures: Sequence[str]
) -> tuple[dict[str, Any], dict[str, PIL.Image.Image]]:
    """Return columns of a row, and figures by name, for what was asked of one image."""
    attribution = explanation.attributions[0]
    columns: dict[str, Any] = {}
    drawings: dict[str, PIL.Image.Image] = {}
    audited = [name for name in checks if name != "what_if"]
    if audited:
        audit = run_audit(
            explanation.image,
            explanation.forward,
            attribution,
            disabled=explainer.disabled,
            bank=control_bank(explainer.reference),
            checks=audited,
        )
        columns |= _audit_columns(audit)
        drawings |= _audit_figures(explanation, audit, figures)
    if "what_if" in checks and attribution.status == "ok":
        columns["hottest_change"] = _hottest_change(explainer, explanation)
    if "trace" in figures:
        trace = trace_grad_cam(explanation.forward, 0, attribution.target)
        drawings["trace"] = draw_trace_figure(explanation.image, explanation.frame, trace)
    if "split" in figures:
        model, own = explainer.model, explanation.forward.block
        block = own if has_parts(model, own) else last_block_with_parts(model)
        if has_parts(model, block):
            drawings["split"] = draw_block_parts(explanation.image, explanation.frame, explanation.forward,
                                                 attribution.target, block)  # fmt: skip
    return columns, drawings


def _audit_columns(audit: Audit) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    if audit.faithfulness is not None:
        columns |= {
            "faithfulness": audit.faithfulness.score,
            "faithfulness_percentile": audit.faithfulness.percentile,
            "verdict": audit.faithfulness.verdict,
        }
    if audit.agreement is not None:
        columns["agreement"] = audit.agreement.mean
    if audit.shifts is not None:
        columns |= {"shift_spread": audit.shifts.spread, "shift_correlation": audit.shifts.correlation}
    scores = {
        stage.attribution.block: stage.faithfulness.score
        for stage in audit.sweep or ()
        if stage.faithfulness is not None
    }
    if scores:
        columns["best_stage"] = max(scores, key=lambda block: scores[block])
    return columns


def _audit_figures(
    explanation: Explanation, audit: Audit, figures: Sequence[str]
) -> Mapping[str, PIL.Image.Image]:
    image, frame = explanation.image, explanation.frame
    drawings = {}
    if "methods" in figures:
        titles = [METHODS[item.method].title for item in audit.maps]
        drawings["methods"] = draw_methods_figure(image, frame, audit.maps, titles=titles)
    if "sweep" in figures:
        drawings["sweep"] = draw_sweep_figure(image, frame, audit.sweep or ())
    return drawings


def _hottest_change(explainer: Explainer, explanation: Explanation) -> float:
    """Return the change of the target's score when the hottest part of the map is covered."""
    attribution = explanation.attributions[0]
    image, _ = limit_size(explanation.image)
    frame = explainer.model.geometry.frame(image.width, image.height)
    changes = run_cover_test(explainer.backend, image, mask_from_map(frame, attribution)).changes
    return next(item.change for item in changes if item.index == attribution.index)
