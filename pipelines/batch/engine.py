"""The engine of a batch job: chosen when the job begins, and the same one whenever it is taken up again."""

from __future__ import annotations

import json
import os
from pathlib import Path

from models.backends.registry import AUTO
from models.bundle import Bundle
from models.explainer import Explainer
from pipelines.batch.store import open_store
from pipelines.errors import StoreUnavailable

JOB_NOTE = "job.json"


def make_explainer(
    bundle: Bundle, out: Path | str, *, engine: str = AUTO, precision: str = AUTO, threads: int | None = None
) -> Explainer:
    """Return what explains a job's images; "auto" stands for what the job in ``out`` was begun with, and for
    the fastest engine where there is none.

    Raises UnknownChoice, EngineUnavailable or BundleError.
    """
    begun = _begun_with(out)
    if engine == AUTO and begun is not None and precision in (AUTO, begun[1]):
        engine, precision = begun
    return Explainer(bundle, engine, precision=precision, threads=threads or os.cpu_count() or 1)


def _begun_with(out: Path | str) -> tuple[str, str] | None:
    try:
        note = json.loads(open_store(out).read(JOB_NOTE))
        return str(note.get("engine", "eager")), str(note.get("precision", "fp32"))
    except (OSError, ValueError, AttributeError, StoreUnavailable):
        return None
