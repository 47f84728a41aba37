"""The review of a model, made and kept with its run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from models.bundle import Bundle, load_bundle
from models.devices import CPU
from models.images.encode import encode_image
from models.networks.transfer_model import TransferModel
from pipelines.data.dataset import Dataset, match_classes
from pipelines.errors import RegistryError
from pipelines.evaluation.classification import EvaluatedSample, Evaluation, evaluate
from pipelines.evaluation.data_issues import DATA_ISSUES_FILE, DataIssues
from pipelines.evaluation.explanations import LocalizationResult, measure_localization
from pipelines.progress import Reporter
from pipelines.reports.cases import NeighbourIndex, ReviewCase, cases_to_columns, explain_samples
from pipelines.reports.data_issues import explain_label_errors, show_near_duplicates
from pipelines.reports.gallery import draw_gallery_figure, render_gallery
from pipelines.reports.summary import summarize_data_issues, summarize_evaluations
from pipelines.tracking.registry import fetch_bundle, find_run_version, read_run_file
from pipelines.tracking.runs import log_file, log_table

_CLOSE_CALLS = 6
_MOST_MISTAKES = 60
_MOST_ON_SHEET = 24

KeepFile = Callable[[bytes | str, str], None]
"""Takes (content, path of the artefact)."""


def log_review(
    model: TransferModel,
    evaluations: Sequence[Evaluation],
    data: Dataset,
    *,
    name: str,
    run_id: str,
    digest: str,
    baseline: float | None,
    keep: KeepFile,
    keep_table: Callable[[dict[str, list[object]], str], None],
    reporter: Reporter,
    located: Sequence[LocalizationResult] = (),
    issues: DataIssues | None = None,
) -> str:
    """Make the review, keep it as a page, sheets and a table, and return the page."""
    near = NeighbourIndex(model, data.train, reporter.step)

    def explained(evaluation: Evaluation, what: str, chosen: list[EvaluatedSample]) -> list[ReviewCase]:
        return explain_samples(model, chosen, evaluation.split, near, reporter.step, what=what)

    wrong = [
        c
        for evaluation in evaluations
        for c in explained(evaluation, "explaining mistakes", evaluation.wrong[:_MOST_MISTAKES])
    ]
    wrong.sort(key=lambda case: -case.evaluated.error)
    first = evaluations[0]
    close = explained(first, "explaining close calls", first.least_sure[:_CLOSE_CALLS])
    facts = {
        "model": name,
        "run": run_id,
        "bundle digest": digest,
        "backbone": model.backbone.name,
        "Grad-CAM block": model.cam_block,
        "task": model.scoring.task,
        "view": model.geometry.view,
        "temperature": f"{model.scoring.temperature:.3f}",
        "mistakes shown": f"{len(wrong)} of {sum(len(e.wrong) for e in evaluations)}",
    }
    doubted = explain_label_errors(model, issues, data, near, reporter) if issues is not None else []
    summary = summarize_evaluations(
        evaluations, baseline, shared=data.shared, geometry=model.geometry, located=located
    )
    html = render_gallery(
        evaluations, wrong, close, title=f"Review of {name}", facts=facts,
        summary=[*summary, *summarize_data_issues(issues, data)],
        doubted=doubted,
        pairs=show_near_duplicates(issues) if issues is not None else [],
    )  # fmt: skip
    keep(html, "review/review.html")
    if wrong:
        sheet = draw_gallery_figure(wrong[:_MOST_ON_SHEET], title=f"{name}: mistakes")
        keep(encode_image(sheet, "png"), "review/mistakes.png")
        keep_table(cases_to_columns(wrong), "review/mistakes.json")
    if close:
        sheet = draw_gallery_figure(close, title=f"{name}: close calls")
        keep(encode_image(sheet, "png"), "review/close_calls.png")
    return html


def load_run_bundle(run_id: str, data: Dataset, *, device: torch.device = CPU) -> Bundle:
    """Load the checked model of a run onto a device, if it knows the data's classes; raises RegistryError."""
    reference = find_run_version(run_id)
    with tempfile.TemporaryDirectory() as aside:
        checked = load_bundle(fetch_bundle(reference, Path(aside) / "bundle").folder, device=device)
    if set(checked.model.classes) != set(data.classes):
        raise RegistryError(f"{reference} knows {checked.model.classes}, the data has {data.classes}.")
    return checked


def evaluate_held_out(checked: Bundle, data: Dataset, reporter: Reporter) -> list[Evaluation]:
    """Evaluate the data's validation split and, if there is one, its test split."""
    return [
        evaluate(
            checked.model,
            data.samples(split),
            split,
            progress=reporter.step,
        )
        for split in ("val", "test")
        if data.samples(split)
    ]


def review_run(
    run_id: str,
    data: Dataset,
    *,
    reporter: Reporter | None = None,
    keep: Callable[[str], object] = lambda html: None,
    device: torch.device = CPU,
) -> str:
    """Judge the run's model on the data's held-out splits, log the review to the run, and return its page.

    ``keep`` is given the page before anything is logged.
    Raises RegistryError when the data set is not the one that the model was trained and judged on.
    """
    reporter = reporter or Reporter()
    checked = load_run_bundle(run_id, data, device=device)
    data = match_classes(data, checked.model.classes)
    trained_on = checked.manifest.get("dataset", {}).get("digest")
    if trained_on != data.digest:
        raise RegistryError(
            f"{find_run_version(run_id)} was trained on another data set "
            f"(digest {str(trained_on)[:12]}, not {data.digest[:12]})."
        )

    def log(content: bytes | str, path: str) -> None:
        if isinstance(content, str):
            keep(content)
        log_file(run_id, content, path)

    return log_review(
        checked.model,
        evaluate_held_out(checked, data, reporter),
        data,
        name=checked.provenance.model,
        run_id=run_id,
        digest=checked.provenance.digest,
        baseline=checked.manifest["metrics"].get("baseline_accuracy"),
        keep=log,
        keep_table=partial(log_table, run_id),
        reporter=reporter,
        located=measure_localization(checked.model, data, "val"),
        issues=DataIssues.from_json(read_run_file(run_id, DATA_ISSUES_FILE), data),
    )
