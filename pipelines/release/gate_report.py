"""The gate's evidence: a page that a person reads in two minutes, JSON for programs, JUnit XML for CI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from xml.etree import ElementTree

import PIL.Image

from models.images.decode import read_image
from models.images.encode import to_data_uri
from models.visualization.overlay import draw_overlay
from pipelines.evaluation.explanation_drift import ExplainedSample, PictureDrift
from pipelines.release.gate import CheckResult, Verdict
from pipelines.reports.html import render_template

_MOST_SHOWN, _SHOWN_SIDE = 8, 280
_MARKS = {"passed": "good", "failed": "bad", "too small to tell": "unsure", "could not be judged": "bad"}


def verdict_to_dict(verdict: Verdict, facts: Mapping[str, str]) -> dict[str, Any]:
    """Return all that the gate found, as JSON has it."""
    return {
        "passed": verdict.passed,
        "summary": verdict.summary,
        **facts,
        "policy": {
            "name": verdict.policy.name,
            "digest": verdict.policy.digest,
            "too_small": verdict.policy.too_small,
            "checks": [asdict(check) for check in verdict.policy.checks],
        },
        "checks": [
            {
                "title": result.check.title,
                "metric": result.check.metric,
                "slice": result.check.slice,
                "split": result.check.split,
                "severity": result.check.severity,
                "rule": result.check.rule,
                "status": result.status,
                "blocks": result.blocks,
                "figure": result.figure,
                "champion": result.champion,
                "interval": None if result.interval is None else asdict(result.interval),
                "flips": None if result.flips is None else asdict(result.flips),
                "reason": result.reason,
            }
            for result in verdict.results
        ],
        "drift": [item.to_dict() for item in verdict.drifts],
    }


def verdict_to_json(verdict: Verdict, facts: Mapping[str, str]) -> str:
    """Return the same as text."""
    return json.dumps(verdict_to_dict(verdict, facts), indent=2, ensure_ascii=False, allow_nan=False)


def verdict_to_junit(verdict: Verdict) -> bytes:
    """Return JUnit XML with a case for each check: a failure where it blocks, skipped where it only warns."""
    suite = ElementTree.Element(
        "testsuite",
        name=f"gate of {verdict.version.title}",
        tests=str(len(verdict.results)),
        failures=str(sum(result.blocks for result in verdict.results)),
        skipped=str(sum(result.status != "passed" and not result.blocks for result in verdict.results)),
    )
    for result in verdict.results:
        case = ElementTree.SubElement(
            suite, "testcase", classname=f"gate.{result.check.metric}", name=result.check.title
        )
        if result.blocks:
            ElementTree.SubElement(case, "failure", message=result.status).text = result.reason
        elif result.status != "passed":
            ElementTree.SubElement(case, "skipped", message=f"{result.status}: {result.reason}")
    ElementTree.indent(suite)
    body: bytes = ElementTree.tostring(suite, encoding="utf-8", xml_declaration=True)
    return body + b"\n"


def render_verdict(verdict: Verdict, facts: Mapping[str, str], *, decision: str) -> str:
    """Return the page: the verdict, each check, and the pictures that moved most."""
    return render_template(
        "gate.html.j2",
        title=f"May {verdict.version.title} go live?",
        decision=decision,
        passed=verdict.passed,
        summary=verdict.summary,
        champion=None if verdict.champion is None else verdict.champion.title,
        results=[_row(result) for result in sorted(verdict.results, key=_urgency)],
        groups=_drift_groups(verdict),
        broken=_broken(verdict),
        moved=_moved(verdict),
        facts=facts,
    )


def _urgency(result: CheckResult) -> int:
    order = ("failed", "could not be judged", "too small to tell", "passed")
    return 0 if result.blocks else 1 + order.index(result.status)


def _row(result: CheckResult) -> dict[str, Any]:
    return {
        "title": result.check.title,
        "status": result.status,
        "mark": _MARKS[result.status],
        "blocks": result.blocks,
        "severity": result.check.severity,
        "reason": result.reason,
    }


def _drift_groups(verdict: Verdict) -> list[dict[str, Any]]:
    """Return what the evidence did, by who is right."""
    rows = []
    for group in ("both right", "one right", "both wrong"):
        items = [item for item in verdict.drifts if item.group == group]
        moved = [item.moved for item in items if item.moved is not None]
        if items:
            rows.append(
                {
                    "group": group,
                    "pictures": len(items),
                    "correlation": sum(item.rank_correlation for item in items) / len(items),
                    "overlap": sum(item.overlap for item in items) / len(items),
                    "moved": sum(moved) / len(moved) if moved else None,
                }
            )
    return rows


def _broken(verdict: Verdict) -> list[dict[str, Any]]:
    """Return pictures that the champion has right and this version has not."""
    champion = verdict.champion
    if champion is None:
        return []
    after = {item.sample.sha256: item for item in verdict.version.explained}
    pairs = [(before, after[before.sample.sha256]) for before in champion.explained]
    lost = [pair for pair in pairs if pair[0].is_correct and not pair[1].is_correct]
    return [_pictured(pair, verdict, "") for pair in lost[:_MOST_SHOWN]]


def _moved(verdict: Verdict) -> list[dict[str, Any]]:
    """Return the pictures whose evidence moved most."""
    champion = verdict.champion
    if champion is None:
        return []
    before = {item.sample.sha256: item for item in champion.explained}
    after = {item.sample.sha256: item for item in verdict.version.explained}
    farthest = sorted((item for item in verdict.drifts if item.moved is not None), key=_distance)
    return [
        _pictured((before[item.sha256], after[item.sha256]), verdict, f"{item.moved:.0%} moved, {item.group}")
        for item in farthest[:_MOST_SHOWN]
    ]


def _distance(item: PictureDrift) -> float:
    return -(item.moved or 0.0)


def _pictured(pair: tuple[ExplainedSample, ExplainedSample], verdict: Verdict, note: str) -> dict[str, Any]:
    image = read_image(pair[0].sample.path)
    small = image.pil.copy()
    small.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))

    def overlay(item: ExplainedSample) -> PIL.Image.Image:
        attribution, frame = item.placed
        return draw_overlay(image, frame, attribution, max_side=_SHOWN_SIDE)

    truth = pair[0].placed[0].label
    return {
        "name": pair[0].sample.name,
        "truth": truth,
        "note": note,
        "picture": to_data_uri(small),
        "maps": [to_data_uri(overlay(item)) for item in pair],
        "right": [item.is_correct for item in pair],
    }
