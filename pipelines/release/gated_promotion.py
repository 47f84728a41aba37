"""Promotion by the gate: judge, keep the evidence, and move the alias last."""

from __future__ import annotations

import getpass
import json
import socket
import tempfile
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from models.bundle import Bundle, load_bundle
from models.devices import CPU
from models.explainer import Explainer
from pipelines.data.dataset import Dataset, has_regions, match_classes
from pipelines.errors import RegistryError
from pipelines.evaluation.data_issues import DATA_ISSUES_FILE, DataIssues
from pipelines.evaluation.explanation_drift import PictureDrift, explain_truths, measure_drift
from pipelines.progress import Reporter
from pipelines.release.gate import Verdict, judge
from pipelines.release.gate_report import render_verdict, verdict_to_json
from pipelines.release.judged_version import JudgedVersion, held_out, judge_version
from pipelines.release.policy import DEFAULT_POLICY, Policy, without_metric
from pipelines.tracking.registry import (
    RegisteredVersion,
    claim_promotion,
    fetch_bundle,
    find_champion,
    find_version,
    read_run_file,
    release_claim,
    set_champion,
    set_version_tag,
)
from pipelines.tracking.runs import log_file

REPORT, VERDICT, SEED_DRIFT = "gate/report.html", "gate/verdict.json", "gate/seed_drift.json"


@dataclass(frozen=True, slots=True)
class GatedPromotion:
    """Decision of the gate, and its reasons."""

    verdict: Verdict
    promoted: bool
    decision: str
    """What was done about the verdict, as a sentence."""


def promote_by_gate(
    reference: str,
    data: Dataset,
    policy: Policy,
    *,
    dry_run: bool = False,
    override: str | None = None,
    reporter: Reporter | None = None,
    keep: Callable[[str], object] = lambda html: None,
    device: torch.device = CPU,
) -> GatedPromotion:
    """Judge a version by a policy on the data's held-out pictures, and make it champion if nothing blocks.

    ``override`` is a reason to do so although something blocks; it is kept with the version. The report is
    given to ``keep``, and logged to the version's run before the alias moves; with ``dry_run`` nothing is
    logged and nothing moves. Raises RegistryError where the version cannot be judged at all, or another
    promotion came first.
    """
    reporter = reporter or Reporter()
    if policy is DEFAULT_POLICY and not has_regions(data):
        policy = without_metric(policy, "localization")
    version = find_version(reference)
    present = find_champion(version.name)
    verdict = _judge(version, present, data, policy, reporter, device)
    promoted = verdict.passed or override is not None
    if verdict.passed:
        decision = f"The alias champion {'would go' if dry_run else 'goes'} to {verdict.version.title}."
    elif override is not None:
        decision = f"Overridden by {_who()}: {override}. The alias champion goes to it all the same."
    else:
        champion = verdict.champion
        decision = f"The champion stays {champion.title}." if champion else "There is no champion."
    if dry_run:
        decision += " This was a dry run: nothing was changed."
    facts = _facts(verdict, data, override)
    page = render_verdict(verdict, facts, decision=decision)
    keep(page)
    if dry_run:
        return GatedPromotion(verdict, False, decision)
    log_file(verdict.version.run_id, page, REPORT)
    log_file(verdict.version.run_id, verdict_to_json(verdict, facts), VERDICT)
    _tag(verdict, facts)
    if promoted:
        _move_alias(verdict.version, present)
    return GatedPromotion(verdict, promoted, decision)


def measure_seed_drift(
    reference: str, other: str, data: Dataset, *, reporter: Reporter, device: torch.device = CPU
) -> list[PictureDrift]:
    """Measure how far another seed of a version's recipe moves the evidence, and keep it with the version's
    run, as the yardstick of later gates.
    """
    explained = []
    with tempfile.TemporaryDirectory() as aside:
        for place, name in enumerate((reference, other)):
            bundle = load_bundle(fetch_bundle(name, Path(aside) / str(place)).folder, device=device)
            classes = bundle.model.classes
            samples = held_out(match_classes(data, classes))
            explained.append(explain_truths(Explainer(bundle), samples, progress=reporter.step))
    drifts = measure_drift(explained[0], explained[1], classes)
    content = {"dataset digest": data.digest, "drift": [item.to_dict() for item in drifts]}
    log_file(find_version(reference).run_id or "", json.dumps(content), SEED_DRIFT)
    return drifts


def read_seed_drift(run_id: str) -> list[PictureDrift] | None:
    """Return what :func:`measure_seed_drift` kept, maybe of other pictures; None where there is nothing."""
    text = read_run_file(run_id, SEED_DRIFT)
    return None if text is None else [PictureDrift(**item) for item in json.loads(text)["drift"]]


def _judge(
    version: RegisteredVersion,
    present: RegisteredVersion | None,
    data: Dataset,
    policy: Policy,
    reporter: Reporter,
    device: torch.device,
) -> Verdict:
    with tempfile.TemporaryDirectory() as aside:

        def load(number: str, role: str) -> Bundle:
            # The champion itself may be judged, beside itself.
            folder = Path(aside) / role
            return load_bundle(fetch_bundle(f"{version.name}/{number}", folder).folder, device=device)

        own = load(str(version.version), "version")
        run_id = version.run_id or ""
        measured = judge_version(
            own,
            data,
            policy,
            number=str(version.version),
            run_id=run_id,
            reporter=reporter,
            issues=DataIssues.from_json(read_run_file(run_id, DATA_ISSUES_FILE), data),
        )
        if present is None:
            return judge(measured, None, policy)
        before = load(str(present.version), "champion")
        changed = set(before.model.classes) ^ set(own.model.classes)
        facts = {**measured.facts, "changed_classes": float(len(changed))}
        measured = _with_facts(measured, facts, ", ".join(sorted(changed)))
        if changed:
            # Its answers are to another question, so there is nothing to compare.
            return judge(measured, None, policy, classes_changed=True)
        champion = judge_version(
            before,
            data,
            # What it relies on is a fact of its own day.
            without_metric(policy, "shortcut_findings"),
            number=str(present.version),
            run_id=present.run_id or "",
            reporter=reporter,
        )
        drifts = measure_drift(champion.explained, measured.explained, before.model.classes)
        seed_drifts = read_seed_drift(champion.run_id)
        return judge(measured, champion, policy, drifts=drifts, seed_drifts=seed_drifts)


def _with_facts(measured: JudgedVersion, facts: dict[str, float], changed: str) -> JudgedVersion:
    return replace(measured, facts=facts, notes={**measured.notes, "changed_classes": changed or "none"})


def _facts(verdict: Verdict, data: Dataset, override: str | None) -> dict[str, str]:
    version, champion = verdict.version, verdict.champion
    return {
        "version": version.title,
        "run": version.run_id,
        "bundle digest": version.bundle.provenance.digest,
        "champion": "none" if champion is None else champion.title,
        "champion's bundle digest": "none" if champion is None else champion.bundle.provenance.digest,
        "data set": f"{data.name}, {len(version.samples)} held-out pictures",
        "data set's digest": data.digest,
        "policy": verdict.policy.name,
        "policy's digest": verdict.policy.digest,
        **{
            f"{title}: {choice.question.lower().rstrip('?')}": f"{choice}. {choice.why}"
            for title, measured in (("method to believe", version), ("champion's method", champion))
            if measured is not None
            for choice in measured.bundle.best_methods
        },
        "judged by": _who(),
        "judged at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
        "override": override or "none",
    }


def _who() -> str:
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError):
        return f"unknown@{socket.gethostname()}"


def _tag(verdict: Verdict, facts: dict[str, str]) -> None:
    tags = {
        "gate.verdict": "passed" if verdict.passed else "blocked",
        "gate.summary": verdict.summary[:4000],
        "gate.policy": f"{verdict.policy.name} {verdict.policy.digest[:12]}",
        "gate.by": facts["judged by"],
        "gate.at": facts["judged at"],
        "gate.report": REPORT,
        "gate.override": facts["override"],
    }
    for key, value in tags.items():
        set_version_tag(verdict.version.name, verdict.version.number, key, value)


def _move_alias(version: JudgedVersion, present: RegisteredVersion | None) -> None:
    """Move the alias, if it is still where it was when the judgement began; raises RegistryError."""
    claim = claim_promotion(version.name, f"{time.time():.3f} {uuid.uuid4().hex}")
    try:
        now = find_champion(version.name)
        before, after = (None if item is None else str(item.version) for item in (present, now))
        if before != after:
            raise RegistryError(
                f"The champion of {version.name} changed from version {before} to {after} while version "
                f"{version.number} was judged; judge it again."
            )
        set_champion(version.name, version.number)
    finally:
        release_claim(version.name, claim)
