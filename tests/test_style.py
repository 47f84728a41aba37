"""Names and docstrings of the whole source: plain words, one word for one thing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path for package in ("models", "service", "pipelines") for path in (PROJECT / package).rglob("*.py")
)
FILLERS = set(
    [
        "found",
        "each",
        "made",
        "known",
        "said",
        "told",
        "asked",
        "wanted",
        "given",
        "kept",
        "shown",
        "drawn",
        "judged",
    ]
)
"""Words that say nothing of what a variable holds."""
NO_VERBS = set(
    [
        "the",
        "a",
        "an",
        "one",
        "all",
        "what",
        "how",
        "which",
        "where",
        "whose",
        "whether",
        "of",
        "as",
        "for",
        "by",
        "in",
        "from",
        "over",
        "after",
        "without",
        "so",
        "always",
        "each",
        "every",
        "maps",
        "weights",
        "logits",
        "values",
        "metrics",
        "raises",
        "returns",
        "computes",
        "gives",
    ]
)
"""First words with which a function's docstring says what something is, not what the function does."""
NO_NOUNS = set(
    [
        "what",
        "how",
        "which",
        "where",
        "whose",
        "whether",
        "of",
        "as",
        "for",
        "by",
        "in",
        "from",
        "after",
        "why",
        "runs",
        "writes",
        "explains",
        "says",
        "asks",
        "keeps",
        "to",
        "while",
        "started",
        "nobody",
        "nothing",
        "it",
    ]
)


def nodes() -> Iterator[tuple[Path, ast.AST]]:
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            yield path.relative_to(PROJECT), node


def bound_names(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.ExceptHandler) and node.name:
        yield node.name


def test_every_variable_says_what_it_holds():
    fillers = [
        f"{path}:{node.lineno} {name}"  # type: ignore[attr-defined]
        for path, node in nodes()
        for name in bound_names(node)
        if name in FILLERS
    ]
    assert not fillers, "say what these hold:\n" + "\n".join(fillers)


def test_no_two_classes_have_one_name():
    homes = defaultdict(list)
    for path, node in nodes():
        if isinstance(node, ast.ClassDef):
            homes[node.name].append(str(path))
    assert not {name: paths for name, paths in homes.items() if len(paths) > 1}


@pytest.mark.parametrize("kind", ["functions begin with a verb", "classes begin with a noun"])
def test_docstrings_of(kind):
    wrong = []
    for path, node in nodes():
        if isinstance(node, ast.ClassDef):
            words = NO_NOUNS if "classes" in kind else set()
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            # A property is what it gives: a noun will do.
            is_property = any("property" in decorator for decorator in decorators)
            words = NO_VERBS if "functions" in kind and not is_property else set()
        else:
            continue
        text = ast.get_docstring(node) or ""
        if text and text.split()[0].strip(",.:;").lower() in words:
            wrong.append(f"{path}:{node.lineno} {node.name}: {text.splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


def test_an_image_is_called_an_image():
    """Published names stay: fields of forms and answers, settings, methods of the Parquet rows."""
    published = {"picture", "pictures", "max_pictures", "max_job_pictures", "most_pictures"}
    wrong = [
        f"{path}:{node.lineno} {name}"  # type: ignore[attr-defined]
        for path, node in nodes()
        for name in bound_names(node)
        if "picture" in name.lower() and name not in published
    ]
    assert not wrong, "\n".join(wrong)


def test_files_and_functions_are_short():
    long = [
        f"{path} has {length} lines"
        for path in SOURCES
        if (length := len(path.read_text().splitlines())) > 400
    ]
    long += [
        f"{path}:{node.lineno} {node.name} has {length} lines"
        for path, node in nodes()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (length := (node.end_lineno or 0) - node.lineno + 1) > 60
    ]
    assert not long, "\n".join(long)
