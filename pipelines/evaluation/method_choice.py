"""A short benchmark of a model's methods on its validation images, for its bundle."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from models.attribution.registry import METHODS
from models.explainer import Explainer
from models.images.decode import read_image
from models.method_choice import MethodChoice
from models.progress import Progress, no_progress
from pipelines.data.dataset import Sample
from pipelines.evaluation.benchmark_plan import plan_short
from pipelines.evaluation.best_methods import choose_best, summarize_rows
from pipelines.evaluation.method_benchmark import (
    MethodBenchmark,
    cells_by_candidate,
    list_candidates,
    make_contestants,
)

_TOO_COSTLY = ("integrated_gradients",)
"""As costly as all others together; `lucida benchmark` asks it as well."""


def choose_methods(
    explainer: Explainer, samples: Sequence[Sample], which: str, *, progress: Progress = no_progress
) -> list[MethodChoice]:
    """Return the best method for each question: of "all" methods, of those that read a "block" and cost
    little, or of "none"; nothing without samples.
    """
    if which == "none" or not samples:
        return []
    backend, model = explainer.backend, explainer.model
    images = [model.geometry.prepare(read_image(sample.path))[0] for sample in samples]
    candidates = [
        item for item in list_candidates(model, images[0])
        if item.method not in explainer.disabled
        and item.method not in _TOO_COSTLY
        and (which == "all" or not item.costly)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        benchmark = MethodBenchmark(
            make_contestants(backend, candidates),
            plan_short(backend, images),
            Path(folder) / "rows.jsonl",
            about={},
        )
        benchmark.run(progress)
    cells = cells_by_candidate(candidates, model, images[0])
    by_name = {str(item): item for item in candidates}
    choices = []
    for best in choose_best(summarize_rows(benchmark.rows), candidates, cells):
        if best.candidate is None:
            choices.append(MethodChoice(best.question, None, None, best.why))
            continue
        chosen = by_name[best.candidate]
        block = chosen.block if METHODS[chosen.method].reads_block else None
        choices.append(MethodChoice(best.question, chosen.method, block, best.why))
    return choices
