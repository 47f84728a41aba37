"""The gallery of a model's mistakes, made and logged to its run."""

from __future__ import annotations

from collections.abc import Sequence

from models.transfer import TransferModel
from pipelines import tracking
from pipelines.evaluate import Evaluation, Judged
from pipelines.finetune import Reporter
from pipelines.review import gallery

_CLOSE_CALLS = 6
_MOST_MISTAKES = 60
_MOST_ON_SHEET = 24


def log_review(
    model: TransferModel,
    evaluations: Sequence[Evaluation],
    *,
    name: str,
    run_id: str,
    digest: str,
    reporter: Reporter,
) -> str:
    """Make the misclassification gallery, log it to the run as a page and a sheet, and return the page."""

    def explained(split: str, what: str, judged: list[Judged]) -> list[gallery.Case]:
        return gallery.cases(
            model, judged, split, report=lambda done, total: reporter.step(what, done, total)
        )

    wrong = [
        c
        for each in evaluations
        for c in explained(each.split, "explaining mistakes", each.wrong[:_MOST_MISTAKES])
    ]
    close = [
        c
        for each in evaluations[:1]
        for c in explained(each.split, "explaining close calls", each.least_sure[:_CLOSE_CALLS])
    ]
    facts = {
        "model": name,
        "run": run_id,
        "bundle digest": digest,
        "backbone": model.row.name,
        "Grad-CAM block": model.cam_block,
        "mistakes shown": f"{len(wrong)} of {sum(len(e.wrong) for e in evaluations)}",
    }
    html = gallery.page(evaluations, wrong, close, title=f"Review of {name}", facts=facts)
    tracking.log_page(html, "review/review.html", run_id=run_id)
    if wrong:
        mistakes = gallery.sheet(wrong[:_MOST_ON_SHEET], title=f"{name}: mistakes")
        tracking.log_picture(mistakes, "review/mistakes.png", run_id=run_id)
    if close:
        nearly = gallery.sheet(close, title=f"{name}: close calls")
        tracking.log_picture(nearly, "review/close_calls.png", run_id=run_id)
    return html
