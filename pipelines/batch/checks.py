"""What a job may ask of each picture beyond its map: the same checks and sheets as for a single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from models.attribution.forward import ForwardPass, run_forward
from models.attribution.registry import DEFAULT_METHOD, METHODS
from models.attribution.result import Attribution, make_attribution
from models.backends.base import Backend
from models.errors import UnknownChoice
from models.images.decode import Image
from models.images.encode import encode_image
from models.images.geometry import Frame
from models.introspection.cover_test import limit_size, mask_from_map, run_cover_test
from models.introspection.decomposition import decompose, has_parts, last_block_with_parts
from models.introspection.gradcam_trace import trace_grad_cam
from models.metrics.audit import run_audit
from models.visualization.figures import (
    draw_decomposition_figure,
    draw_methods_figure,
    draw_sweep_figure,
    draw_trace_figure,
)

JobCheck = Literal["faithfulness", "agreement", "shifts", "sweep", "what_if"]
JobFigure = Literal["methods", "sweep", "trace", "split"]
JOB_CHECKS: tuple[JobCheck, ...] = get_args(JobCheck)
JOB_FIGURES: tuple[JobFigure, ...] = get_args(JobFigure)
_NEEDS = {"methods": "agreement", "sweep": "sweep"}
"""Sheets that show what a check found."""


def check_job_options(
    checks: Sequence[str], sheets: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names in a fixed order, each once; raises UnknownChoice."""
    for name in checks:
        if name not in JOB_CHECKS:
            raise UnknownChoice("check", name, JOB_CHECKS)
    for name in sheets:
        if name not in JOB_FIGURES:
            raise UnknownChoice("sheet", name, JOB_FIGURES)
    wanted = {*checks, *(_NEEDS[name] for name in sheets if name in _NEEDS)}
    return tuple(name for name in JOB_CHECKS if name in wanted), tuple(
        name for name in JOB_FIGURES if name in sheets
    )


def run_job_checks(
    engine: Backend,
    image: Image,
    found: Attribution,
    *,
    block: str,
    checks: Sequence[str],
    sheets: Sequence[str],
    barred: Mapping[str, str],
    stem: Path,
) -> dict[str, Any]:
    """Columns of a row for what was asked; sheets are written as ``stem``-NAME.jpg."""
    x, frame = engine.model.geometry.prepare(image)
    evidence = run_forward(engine.model, x[None], block=block, engine=engine)
    columns: dict[str, Any] = {}
    audited = [name for name in checks if name != "what_if"]
    if audited:
        result = run_audit(image, evidence, found, barred=barred, checks=audited)
        if (judged := result.faithfulness) is not None:
            columns |= {
                "faithfulness": judged.score,
                "faithfulness_percentile": judged.percentile,
                "verdict": judged.verdict,
            }
        if result.agreement is not None:
            columns["agreement"] = result.agreement.mean
        if result.shifts is not None:
            columns |= {
                "shift_spread": result.shifts.spread,
                "shift_correlation": result.shifts.correlation,
            }
        judged_stages = [stage for stage in result.sweep or () if stage.faithfulness is not None]
        if judged_stages:
            best = max(judged_stages, key=lambda stage: stage.faithfulness.score if stage.faithfulness else 0)
            columns["best_stage"] = best.attribution.block
        for name, sheet in (
            ("methods", lambda: _methods(image, frame, result.maps)),
            ("sweep", lambda: draw_sweep_figure(image, frame, result.sweep or ())),
        ):
            if name in sheets:
                _write(stem, name, sheet())
    if "what_if" in checks and found.status == "ok":
        smaller, _ = limit_size(image)
        within = engine.model.geometry.frame(smaller.width, smaller.height)
        changes = run_cover_test(engine, smaller, mask_from_map(within, found)).changes
        columns["hottest_change"] = next(item.change for item in changes if item.index == found.index)
    if "trace" in sheets:
        _write(stem, "trace", draw_trace_figure(image, frame, trace_grad_cam(evidence, 0, found.target)))
    if "split" in sheets:
        _split(image, frame, evidence, found, stem)
    return columns


def _methods(image: Image, frame: Frame, maps: Sequence[Attribution]) -> Any:
    return draw_methods_figure(image, frame, maps, titles=[METHODS[each.method].title for each in maps])


def _split(image: Image, frame: Frame, evidence: ForwardPass, found: Attribution, stem: Path) -> None:
    model = evidence.model
    block = evidence.block if has_parts(model, evidence.block) else last_block_with_parts(model)
    if has_parts(model, block):
        parts = decompose(model, evidence.x[0], found.target, block, engine=evidence.engine)
        maps = [
            make_attribution(found.target, part.values, method=DEFAULT_METHOD, block=block)
            for part in parts.parts
        ]
        _write(stem, "split", draw_decomposition_figure(image, frame, parts, maps))


def _write(stem: Path, name: str, picture: Any) -> None:
    stem.with_name(f"{stem.name}-{name}.jpg").write_bytes(encode_image(picture))
