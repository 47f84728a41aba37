"""A model card (Mitchell et al. 2019) of a registered version, from what its run, its bundle, the gate and
its owner say; what nobody has said is said to be missing.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.bundle import Bundle, load_bundle
from models.devices import CPU
from pipelines.evaluation.data_issues import DATA_ISSUES_FILE
from pipelines.reports.annex_iv import POINTS
from pipelines.reports.card_sections import (
    NOTHING,
    CardSection,
    data_section,
    explanation_section,
    gate_section,
    intended_section,
    limits_section,
    model_section,
    performance_section,
    production_section,
    training_section,
    versions_section,
)
from pipelines.reports.html import render_template
from pipelines.tracking.registry import (
    RegisteredVersion,
    fetch_bundle,
    find_version,
    read_run_file,
    set_version_tag,
)
from pipelines.tracking.runs import log_file

CARD_HTML, CARD_MARKDOWN = "card/card.html", "card/card.md"
_GATE_FILE = "gate/verdict.json"


@dataclass(frozen=True)
class ModelCard:
    """A model card, ready to be written."""

    title: str
    digest: str
    """Of the bundle that it is about."""
    sections: tuple[CardSection, ...]
    stated: tuple[str, ...]
    """Names of what the owner has stated."""

    def files(self) -> dict[str, str]:
        """Return it in both forms, as a service takes them."""
        return {"html": self.to_html(), "markdown": self.to_markdown()}

    def to_html(self) -> str:
        """Return it as one HTML page without any outside reference."""
        return render_template(
            "model_card.html.j2", title=self.title, digest=self.digest, sections=self.sections,
            points=POINTS, stated=self.stated,
        )  # fmt: skip

    def to_markdown(self) -> str:
        """Return it as Markdown."""
        lines = [f"# {_escape(self.title)}", "", f"Bundle `{self.digest}`.", ""]
        for section in self.sections:
            lines += [f"## {section.title}", ""]
            for paragraph in section.paragraphs:
                lines += [_escape(paragraph), ""]
            if section.facts:
                lines += _table(("", ""), list(section.facts.items()))
            for table in section.tables:
                lines += [f"**{_escape(table.title)}**", "", *_table(table.columns, table.rows)]
        rows = [
            (point.number, point.asks_for, ", ".join(point.sections) or NOTHING, point.coverage(self.stated),
             point.missing(self.stated))
            for point in POINTS
        ]  # fmt: skip
        lines += ["## Annex IV of the EU AI Act", ""]
        lines += _table(("point", "asks for", "section", "here", "missing"), rows)
        return "\n".join(lines)


def make_card(reference: str, stated: Mapping[str, Sequence[str]]) -> tuple[RegisteredVersion, ModelCard]:
    """Gather the card of a registered version; ``stated`` is what its owner says, by the names of
    :data:`pipelines.reports.intended_use.FIELDS`. Raises RegistryError or BundleError.
    """
    version = find_version(reference)
    with tempfile.TemporaryDirectory() as aside:
        exact = f"{version.name}/{version.version}"
        bundle = load_bundle(fetch_bundle(exact, Path(aside) / "bundle").folder, device=CPU)
        return version, _build(version, bundle, stated)


def log_card(version: RegisteredVersion, card: ModelCard) -> None:
    """Keep a card with its version: as files of the run, and as a tag that says where."""
    log_file(version.run_id or "", card.to_html(), CARD_HTML)
    log_file(version.run_id or "", card.to_markdown(), CARD_MARKDOWN)
    set_version_tag(version.name, str(version.version), "card", CARD_HTML)


def read_logged_card(run_id: str) -> dict[str, str] | None:
    """Return what :func:`log_card` kept with a run; None where it kept nothing."""
    if not run_id:
        return None
    html, markdown = (read_run_file(run_id, path) for path in (CARD_HTML, CARD_MARKDOWN))
    return None if html is None or markdown is None else {"html": html, "markdown": markdown}


def _build(version: RegisteredVersion, bundle: Bundle, stated: Mapping[str, Sequence[str]]) -> ModelCard:
    run_id = version.run_id or ""

    def read(path: str) -> Any:
        text = read_run_file(run_id, path) if run_id else None
        return None if text is None else json.loads(text)

    classes = {split: read(f"classes_{split}.json") for split in ("val", "test")}
    sections = (
        model_section(version, bundle, stated),
        intended_section(stated),
        data_section(bundle, read("dataset.json"), read(DATA_ISSUES_FILE), stated),
        performance_section(bundle, {split: rows for split, rows in classes.items() if rows}),
        explanation_section(bundle),
        limits_section(bundle, stated),
        gate_section(read(_GATE_FILE), dict(version.tags)),
        production_section(bundle, stated),
        training_section(bundle),
        versions_section(bundle),
    )
    title = f"{version.name} version {version.version}"
    return ModelCard(title, bundle.provenance.digest, sections, tuple(stated))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *([_escape(cell) for cell in row] for row in rows)]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]


def _escape(text: str) -> str:
    """Return a text as Markdown shows it as it is, also within a table."""
    for letter in "\\`*_[]<>|#":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())
