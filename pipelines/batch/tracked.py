"""A finished job as a run of MLflow: what was asked, how many pictures of which class, page and table."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter

from models.bundle import Bundle
from pipelines.batch.job import ExplainJob
from pipelines.batch.parts import BatchResult
from pipelines.batch.sinks import read_rows
from pipelines.batch.store import open_store
from pipelines.tracking.runs import log_finished_run, log_table

_TABLE_COLUMNS = ("path", "truth", "prediction", "score", "status", "border_mass", "novelty_percentile",
                  "faithfulness_percentile", "error")  # fmt: skip
_MOST_ROWS, _LARGEST_PAGE = 10_000, 64_000_000


def track_job(job: ExplainJob, bundle: Bundle, result: BatchResult, seconds: float) -> str:
    """Log a finished job as a run of its own; return the run's id. Raises TrackerUnavailable.

    The table has the first 10,000 rows; a page above 64 MB stays where it is.
    """
    store = open_store(result.out)
    rows = read_rows(store, only=_TABLE_COLUMNS)
    classes = Counter(row["prediction"] for row in rows if row["prediction"])
    hits = [row["truth"] == row["prediction"] for row in rows if row["truth"] and row["prediction"]]
    metrics = {"pictures": result.pictures, "errors": result.errors, "seconds": seconds}
    metrics |= {"accuracy": sum(hits) / len(hits)} if hits else {}
    files = {"counts.csv": _counts(classes), "job.json": store.read("job.json").decode()}
    page = store.read("index.html")
    if len(page) <= _LARGEST_PAGE:
        files["index.html"] = page.decode()
    origin = bundle.provenance
    run_id = log_finished_run(
        f"explain {origin.model} {result.pictures} pictures",
        "lucida explain",
        tags={"model": origin.model, "bundle.digest": origin.digest, "results": str(result.out)},
        params={key: json.dumps(value) for key, value in job.settings().items()}
        | {"source": job.source.where, "version": origin.version or "not from a registry"},
        metrics=metrics,
        files=files,
    )
    shown_rows = rows[:_MOST_ROWS]
    log_table(run_id, {name: [row[name] for row in shown_rows] for name in _TABLE_COLUMNS}, "rows.json")
    return run_id


def _counts(classes: Counter[str]) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(("prediction", "pictures"))
    writer.writerows(classes.most_common())
    return text.getvalue()
