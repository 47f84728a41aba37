"""The review of a model, made and kept with its run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from models.render.overlay import encode
from models.transfer import TransferModel
from pipelines.data import Dataset
from pipelines.evaluate import Evaluation, Judged
from pipelines.reporter import Reporter
from pipelines.review import gallery, summary
from pipelines.review.cases import Case, Neighbours, as_rows, explain

_CLOSE_CALLS = 6
_MOST_MISTAKES = 60
_MOST_ON_SHEET = 24

Keep = Callable[[bytes | str, str], None]
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
    keep: Keep,
    keep_table: Callable[[dict[str, list[object]], str], None],
    reporter: Reporter,
) -> str:
    """Make the review, keep it as a page, sheets and a table, and return the page."""
    near = Neighbours(
        model, data.train, lambda done, total: reporter.step("looking for neighbours", done, total)
    )

    def explained(each: Evaluation, what: str, chosen: list[Judged]) -> list[Case]:
        return explain(model, chosen, each.split, near, lambda done, total: reporter.step(what, done, total))

    wrong = [
        c for each in evaluations for c in explained(each, "explaining mistakes", each.wrong[:_MOST_MISTAKES])
    ]
    wrong.sort(key=lambda case: -case.judged.error)
    first = evaluations[0]
    close = explained(first, "explaining close calls", first.least_sure[:_CLOSE_CALLS])
    facts = {
        "model": name,
        "run": run_id,
        "bundle digest": digest,
        "backbone": model.row.name,
        "Grad-CAM block": model.cam_block,
        "task": model.scoring.task,
        "temperature": f"{model.scoring.temperature:.3f}",
        "mistakes shown": f"{len(wrong)} of {sum(len(e.wrong) for e in evaluations)}",
    }
    html = gallery.page(
        evaluations, wrong, close, title=f"Review of {name}", facts=facts,
        summary=summary.sentences(evaluations, baseline, shared=data.shared),
    )  # fmt: skip
    keep(html, "review/review.html")
    if wrong:
        sheet = gallery.sheet(wrong[:_MOST_ON_SHEET], title=f"{name}: mistakes")
        keep(encode(sheet, "png"), "review/mistakes.png")
        keep_table(as_rows(wrong), "review/mistakes.json")
    if close:
        sheet = gallery.sheet(close, title=f"{name}: close calls")
        keep(encode(sheet, "png"), "review/close_calls.png")
    return html
