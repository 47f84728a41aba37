"""Review of a finished run: its model, taken from the registry, judged again on its data."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import mlflow

from models import bundle
from models.bundle import Bundle
from models.errors import RegistryError
from pipelines.config import TrainConfig
from pipelines.data import Dataset
from pipelines.evaluate import Evaluation, evaluate
from pipelines.reporter import Reporter
from pipelines.review.log import log_review
from pipelines.tracking import registry, runs
from pipelines.tracking.outbox import AWAY


def find_run(reference: str) -> str:
    """A run id from a run id or from a registered model (NAME, NAME@alias, NAME/number)."""
    if len(reference) == 32 and all(c in "0123456789abcdef" for c in reference):
        registry.run_tags(reference)
        return reference
    found = registry.find_version(reference)
    if not found.run_id:
        raise RegistryError(f"{found.name} version {found.version} does not say which run it came from.")
    return str(found.run_id)


def model_of(run_id: str) -> str:
    """The registered version, as "NAME/number", that a run produced; raises RegistryError when there is
    none.
    """
    try:
        versions = mlflow.MlflowClient().search_model_versions(f"run_id = '{run_id}'")
    except AWAY as error:
        reason = " ".join(str(error).split())[:300]
        raise RegistryError(f"The registry at {runs.shown_uri()} cannot be asked: {reason}") from error
    if not versions:
        raise RegistryError(f"The run {run_id} registered no model version, so there is nothing to review.")
    newest = max(versions, key=lambda item: int(item.version))
    return f"{newest.name}/{newest.version}"


def val_share_of(run_id: str) -> float:
    """The share of an undivided folder that the run held out, so that a review divides it the same way."""
    return float(registry.run_params(run_id).get("val_share", TrainConfig().val_share))


def bundle_of(run_id: str, data: Dataset) -> Bundle:
    """The checked model of a run, if it knows the data's classes; raises RegistryError."""
    reference = model_of(run_id)
    with tempfile.TemporaryDirectory() as aside:
        checked = bundle.load(registry.fetch_bundle(reference, Path(aside) / "bundle").folder)
    if checked.model.classes != data.classes:
        raise RegistryError(f"{reference} knows {checked.model.classes}, the data has {data.classes}.")
    return checked


def held_out(checked: Bundle, data: Dataset, reporter: Reporter) -> list[Evaluation]:
    """The data's validation split and, if there is one, its test split, judged."""
    return [
        evaluate(
            checked.model,
            data.samples(split),
            split,
            report=lambda done, total: reporter.step("evaluating", done, total),
        )
        for split in ("val", "test")
        if data.samples(split)
    ]


def review(
    run_id: str,
    data: Dataset,
    *,
    reporter: Reporter | None = None,
    keep: Callable[[str], object] = lambda html: None,
) -> str:
    """Judge the run's model on the data's held-out splits, log the review to the run, and return its page.

    ``keep`` is given the page before anything is logged.
    Raises RegistryError when the data set is not the one that the model was trained and judged on.
    """
    reporter = reporter or Reporter()
    checked = bundle_of(run_id, data)
    trained_on = checked.manifest.get("dataset", {}).get("digest")
    if trained_on != data.digest:
        raise RegistryError(
            f"{model_of(run_id)} was trained on another data set "
            f"(digest {str(trained_on)[:12]}, not {data.digest[:12]})."
        )

    def log(content: bytes | str, path: str) -> None:
        if isinstance(content, str):
            keep(content)
        runs.log_file(run_id, content, path)

    return log_review(
        checked.model,
        held_out(checked, data, reporter),
        data,
        name=checked.provenance.model,
        run_id=run_id,
        digest=checked.provenance.digest,
        baseline=checked.manifest["metrics"].get("baseline_accuracy"),
        keep=log,
        keep_table=partial(runs.log_columns, run_id),
        reporter=reporter,
    )
