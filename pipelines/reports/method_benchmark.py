"""The page of a benchmark of methods: the best for each question, and every figure beside its controls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from pipelines.evaluation.benchmark_tasks import CEILING, CELLS, DELETION, GRID, LABEL, MASKS, SPECIMENS
from pipelines.evaluation.best_methods import FEWEST_SAMPLES, BestMethod, Figure, MethodFigures
from pipelines.reports.benchmark_cases import MethodCases
from pipelines.reports.html import render_template

_LOCATED_COLUMNS = {
    "auroc": "AUROC", "average_precision": "average precision", "pointing": "pointing",
    "above_other_class": "AUROC above another class's map",
    "above_other_picture": "AUROC above another picture's map", "energy": "energy",
    "squared_energy": "energy, squared",
}  # fmt: skip
_DELETION_COLUMNS = {
    "single": "single deletion, two covers", "blur": "blurred", "mean": "mean colour",
    "area_between": "insertion less deletion",
}  # fmt: skip
_SPECIMEN_COLUMNS = {
    "parts": "ranks of parts", "ignored": "AUROC of parts that count", "contrast": "between two marks",
    "completeness": "loss by the first part",
}  # fmt: skip
_ABOUT_GRIDS = (
    "Pictures of different classes as one; the map of a class should lie in the cell of its picture. A map "
    "that knows nothing of the class has an AUROC of 0.5."
)
_ABOUT_DELETION = (
    "Each place is covered alone; the figure is the rank correlation of the map with what the logit loses. "
    "How far the two covers agree with each other is the most that a map can reach."
)
_ABOUT_MASKS = (
    "The map of the predicted class against the mask of the object. Objects lie in the middle, so a spot "
    "there, the map of another class and that of another picture tell what a figure is worth."
)
_ABOUT_SPECIMENS = (
    "Drawn specimens, drawn again without each part: both marks, the wings, the ground. Ranks: correlation "
    "of the parts' shares of the map with what the logit loses. Between two marks: on a specimen with the "
    "marks of two species, whether each class's map lies on its own, 0.5 by chance."
)
_ABOUT_LABEL = (
    "Specimens with a collector's label that raises the score of some species by more than a fifth, which is "
    "the species explained: which maps lie on the label."
)
_SECTIONS = {
    DELETION: ("Single deletion, deletion and insertion", _ABOUT_DELETION),
    CELLS: ("Single deletion by the cells of the block", _ABOUT_DELETION),
    MASKS: ("Masks of objects", _ABOUT_MASKS),
    SPECIMENS: ("Parts of drawn specimens", _ABOUT_SPECIMENS),
    LABEL: ("A planted label", _ABOUT_LABEL),
}


@dataclass(frozen=True, slots=True)
class TableCell:
    """A figure of the page."""

    text: str
    best: bool


@dataclass(frozen=True, slots=True)
class TableRow:
    """A method's figures, or a control's."""

    name: str
    cells: tuple[TableCell, ...]
    count: int
    control: bool = False


@dataclass(frozen=True, slots=True)
class BenchmarkTable:
    """The figures of one task."""

    title: str
    what: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]


def render_benchmark(
    figures: Sequence[MethodFigures], best: Sequence[BestMethod], cases: Sequence[MethodCases], *, title: str,
    about: str,
) -> str:  # fmt: skip
    """Return the page."""
    tables = benchmark_tables(figures)
    return render_template(
        "benchmark.html.j2", title=title, about=about, best=best, cases=cases, tables=tables
    )


def benchmark_tables(figures: Sequence[MethodFigures]) -> list[BenchmarkTable]:
    """Return a table for each task."""
    tasks = list(dict.fromkeys(item.task for item in figures))
    return [_table(task, [item for item in figures if item.task == task]) for task in tasks]


def benchmark_to_json(
    figures: Sequence[MethodFigures], best: Sequence[BestMethod], about: Mapping[str, object]
) -> str:
    """Return all of it as JSON text; a figure that could not be measured is null."""
    rows = [
        {
            "task": item.task, "candidate": item.candidate,
            "figures": {name: _plain(figure) for name, figure in item.figures.items()},
        }
        for item in figures
    ]  # fmt: skip
    content = {"about": dict(about), "best": [asdict(item) for item in best], "figures": rows}
    return json.dumps(content, indent=2, allow_nan=False)


def _plain(figure: Figure) -> dict[str, float | int | None]:
    return {
        name: value if isinstance(value, int) or value == value else None
        for name, value in asdict(figure).items()
    }


def _table(task: str, items: Sequence[MethodFigures]) -> BenchmarkTable:
    methods = [item for item in items if item.candidate != CEILING]
    columns = {
        name: title for name, title in (_DELETION_COLUMNS | _SPECIMEN_COLUMNS | _LOCATED_COLUMNS).items()
        if any(name in item.figures for item in methods)
    }  # fmt: skip
    # A few samples make the best figure by luck.
    sampled = [item for item in methods if _count(item) >= FEWEST_SAMPLES]
    tops = {
        name: max((item.figures[name].mean for item in sampled if name in item.figures), default=float("inf"))
        for name in columns
    }
    rows = [_row(item, tuple(columns), tops) for item in items]
    title, what = _SECTIONS.get(task) or (
        f"Pointing in a {task.removeprefix(GRID).strip()} grid",
        _ABOUT_GRIDS,
    )
    rows += _controls(methods[0], len(columns)) if methods else []
    return BenchmarkTable(title, what, tuple(columns.values()), tuple(rows))


def _controls(first: MethodFigures, columns: int) -> list[TableRow]:
    """Return the AUROC of maps that know nothing of the class: the same for all methods, or the first's."""
    named = (
        ("a spot in the middle", "spot"),
        (f"another class's map, {first.candidate}", "other_class"),
        (f"another picture's map, {first.candidate}", "other_picture"),
    )
    return [
        TableRow(
            title,
            (TableCell(str(first.figures[name]), False), *[TableCell("", False)] * (columns - 1)),
            first.figures[name].count,
            control=True,
        )
        for title, name in named
        if name in first.figures
    ]


def _row(item: MethodFigures, columns: Sequence[str], tops: dict[str, float]) -> TableRow:
    named = item.candidate != CEILING and _count(item) >= FEWEST_SAMPLES
    cells = []
    for name in columns:
        figure = item.figures.get(name)
        best = figure is not None and named and figure.mean >= tops[name] and name != "squared_energy"
        cells.append(TableCell("" if figure is None else str(figure), best))
    return TableRow(item.candidate, tuple(cells), _count(item), item.candidate == CEILING)


def _count(item: MethodFigures) -> int:
    return max(figure.count for figure in item.figures.values())
