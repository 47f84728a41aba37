"""What a job may ask of each picture beyond its map: the same checks and sheets as for a single one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from models.engines import Engine
from models.errors import UnknownChoice
from models.explain.attribution import Attribution, attribution
from models.explain.audit import audit
from models.explain.evidence_split import has_parts, last_with_parts, split
from models.explain.look import Evidence, look
from models.explain.methods import DEFAULT, METHODS
from models.explain.trace import trace
from models.explain.what_if import by_map, what_if, workable
from models.geometry import Frame
from models.images import Image
from models.render.overlay import encode
from models.render.sheets import methods_sheet, split_sheet, sweep_sheet, trace_sheet

Check = Literal["faithfulness", "agreement", "shifts", "sweep", "what_if"]
Sheet = Literal["methods", "sweep", "trace", "split"]
CHECKS: tuple[Check, ...] = get_args(Check)
SHEETS: tuple[Sheet, ...] = get_args(Sheet)
_NEEDS = {"methods": "agreement", "sweep": "sweep"}
"""Sheets that show what a check found."""


def checked(checks: Sequence[str], sheets: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names in a fixed order, each once; raises UnknownChoice."""
    for name in checks:
        if name not in CHECKS:
            raise UnknownChoice("check", name, CHECKS)
    for name in sheets:
        if name not in SHEETS:
            raise UnknownChoice("sheet", name, SHEETS)
    wanted = {*checks, *(_NEEDS[name] for name in sheets if name in _NEEDS)}
    return tuple(name for name in CHECKS if name in wanted), tuple(name for name in SHEETS if name in sheets)


def ask(
    engine: Engine,
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
    evidence = look(engine.model, x[None], block=block, engine=engine)
    columns: dict[str, Any] = {}
    audited = [name for name in checks if name != "what_if"]
    if audited:
        result = audit(image, evidence, found, barred=barred, checks=audited)
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
            ("sweep", lambda: sweep_sheet(image, frame, result.sweep or ())),
        ):
            if name in sheets:
                _write(stem, name, sheet())
    if "what_if" in checks and found.status == "ok":
        smaller, _ = workable(image)
        within = engine.model.geometry.frame(smaller.width, smaller.height)
        changes = what_if(engine, smaller, by_map(within, found)).changes
        columns["hottest_change"] = next(item.change for item in changes if item.index == found.index)
    if "trace" in sheets:
        _write(stem, "trace", trace_sheet(image, frame, trace(evidence, 0, found.target)))
    if "split" in sheets:
        _split(image, frame, evidence, found, stem)
    return columns


def _methods(image: Image, frame: Frame, maps: Sequence[Attribution]) -> Any:
    return methods_sheet(image, frame, maps, titles=[METHODS[each.method].title for each in maps])


def _split(image: Image, frame: Frame, evidence: Evidence, found: Attribution, stem: Path) -> None:
    model = evidence.model
    block = evidence.block if has_parts(model, evidence.block) else last_with_parts(model)
    if has_parts(model, block):
        parts = split(model, evidence.x[0], found.target, block, engine=evidence.engine)
        maps = [attribution(found.target, part.values, method=DEFAULT, block=block) for part in parts.parts]
        _write(stem, "split", split_sheet(image, frame, parts, maps))


def _write(stem: Path, name: str, picture: Any) -> None:
    stem.with_name(f"{stem.name}-{name}.jpg").write_bytes(encode(picture))
