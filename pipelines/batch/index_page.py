"""The page of a batch job: every row in one table, which the page shows part by part, filtered and sorted."""

from __future__ import annotations

import json
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from markupsafe import Markup

from models.bundle import Bundle
from pipelines.batch.job import ExplainJob
from pipelines.batch.sources import FileSource, Source
from pipelines.batch.store import LocalStore, Store, scheme_of
from pipelines.data.visibility import describe_view
from pipelines.reports.html import render_template

_MOST_CLASSES = 12
"""Whose counts stand at the top; the filter has them all."""
_TEXT_COLUMNS = ("prediction", "target", "against", "status", "verdict", "error")


def render_index(job: ExplainJob, bundle: Bundle, rows: Sequence[dict[str, Any]], out: Store | Path) -> str:
    """Return the page for ``out``/index.html: each picture beside its overlay, errors first, then the least
    sure; with the true class where the source says it or its folders are named by the classes.
    """
    classes = {unicodedata.normalize("NFC", name): name for name in bundle.model.classes}
    truths = [row["truth"] or true_class(row["path"], classes) for row in rows]
    counts = Counter(row["prediction"] for row in rows if row["prediction"])
    shares = [row["seen_share"] for row in rows if row["seen_share"] is not None]
    origin, options = bundle.provenance, job.options
    check = bundle.sanity.methods.get(str(options.method)) if bundle.sanity is not None else None
    wrong = [
        row["prediction"] != truth
        for row, truth in zip(rows, truths, strict=True)
        if truth and row["prediction"]
    ]
    return render_template(
        "explain_index.html.j2",
        title=f"{len(rows)} pictures explained",
        table=_embed(_columns(rows, truths, _relative_source(job.source, out))),
        view=describe_view(bundle.model.geometry, shares) if shares else "",
        counts=counts.most_common(_MOST_CLASSES),
        other_classes=len(counts) - min(len(counts), _MOST_CLASSES),
        errors=sum(row["status"] == "error" for row in rows),
        wrong=sum(wrong) if wrong else None,
        facts={
            "model": origin.model,
            "version": origin.version or "not from a registry",
            "run": origin.run_id or "unknown",
            "bundle digest": origin.digest,
            "method": f"{options.method} at {options.block}",
            "class explained": options.target or "each picture's own prediction",
            "held against": options.against or "nothing",
            "shuffled weights": check.reason
            if check is not None
            else "not checked for this method and model",
        },
    )


def true_class(path: str, classes: dict[str, str]) -> str | None:
    """Return the class that a folder of the path is named by, the innermost first; None without one."""
    for folder in reversed(Path(path).parent.parts):
        if (name := classes.get(unicodedata.normalize("NFC", folder))) is not None:
            return name
    return None


def _columns(
    rows: Sequence[dict[str, Any]], truths: Sequence[str | None], source: str | None
) -> dict[str, Any]:
    """Return the rows as columns; a text that many rows have is kept once, and named by its number."""
    numbers: dict[str, int] = {}

    def number(text: str | None) -> int | None:
        return None if text is None else numbers.setdefault(text, len(numbers))

    columns: dict[str, Any] = {
        "source": source,
        "path": [row["path"] for row in rows],
        "overlay": [row["overlay"] for row in rows],
        # An error has no score, and comes first.
        "score": [-1 if row["score"] is None else round(row["score"], 4) for row in rows],
        "truth": [number(truth) for truth in truths],
        "unusual": [_rounded(row["novelty_percentile"]) for row in rows],
        "border": [_rounded(row["border_mass"]) for row in rows],
        "faithless": [_missing(row["faithfulness_percentile"], of=100.0) for row in rows],
        "warnings": [_numbers(row["warnings"] or (), number) for row in rows],
    }
    columns |= {name: [number(row[name]) for row in rows] for name in _TEXT_COLUMNS}
    return columns | {"texts": list(numbers)}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _missing(value: float | None, *, of: float) -> float | None:
    return None if value is None else _rounded(of - value)


def _numbers(texts: Iterable[str], number: Any) -> list[int]:
    return [number(text) for text in texts]


def _relative_source(source: Source, out: Store | Path) -> str | None:
    """Return the address of the source from the page, for as long as both lie where they do; None where its
    pictures are no files that a browser can open from there.
    """
    folder = out.folder if isinstance(out, LocalStore) else out
    if not isinstance(folder, Path) or not isinstance(source, FileSource):
        return None
    if not isinstance(source.store, LocalStore) or any(scheme_of(item.place) for item in source.items):
        return None
    return quote(os.path.relpath(source.store.folder.resolve(), folder.resolve()) + "/")


def _embed(table: dict[str, Any]) -> Markup:
    """Return the table as JSON that may stand within a page's script: no name in it can end that."""
    return Markup(json.dumps(table, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"))
