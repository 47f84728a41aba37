"""Docs that fail when stale."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest

from models.attribution.registry import METHODS
from pipelines.config.schema import Augmentation, PhaseConfig, TrainConfig
from service import schemas
from service.operations.registry import ROUTED
from service.settings import Settings

PROJECT = Path(__file__).resolve().parents[1]
PAGES = [PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_setting_route_and_field_is_described():
    answers = (PROJECT / "docs/reference/answers.md").read_text()
    readme = (PROJECT / "README.md").read_text()
    for name in Settings.model_fields:
        assert f"`LUCIDA_{name.upper()}`" in answers
    for operation in ROUTED.values():
        assert f"POST {operation.path}" in answers
        assert f"POST {operation.path}" in readme
    for shape in (schemas.ExplainAnswer, schemas.Evidence):
        for name in shape.model_fields:
            assert f"`{name}`" in answers, name
    for name in (*schemas.Provenance.model_fields, *schemas.Grid.model_fields):
        assert re.search(rf"\b{name}\b", answers), name


def test_every_method_is_described_as_the_product_describes_it():
    page = (PROJECT / "docs/methods.md").read_text()
    for row in METHODS.values():
        for said in (row.name, row.title, row.good_for, row.misleads):
            assert said in page, f"{row.name}: run `make docs` again"


def test_every_training_setting_is_described():
    page = (PROJECT / "docs/reference/training.md").read_text()
    for kind in (TrainConfig, PhaseConfig, Augmentation):
        for item in fields(kind):
            assert re.search(rf"\b{item.name}\b", page), item.name


def test_every_make_target_of_the_readme_exists():
    makefile = (PROJECT / "Makefile").read_text()
    for target in set(re.findall(r"\bmake ([a-z]+)\b", (PROJECT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_nothing_committed_names_a_machine():
    for path in [
        *PAGES,
        *PROJECT.glob("*.toml"),
        *PROJECT.glob("*.txt"),
        PROJECT / "Makefile",
        PROJECT / ".ci/run",
    ]:
        text = path.read_text()
        assert str(PROJECT) not in text, path
        assert f"{Path.home()}/" not in text, path
        assert "index-url" not in text, path
