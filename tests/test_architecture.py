"""docs/architecture.md says what the contracts of pyproject.toml hold."""

from __future__ import annotations

import re
import tomllib

import pytest

from tests.support.serving import PROJECT

CONTRACTS = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
PAGE = (PROJECT / "docs/architecture.md").read_text()
FLOORS = {
    contract["containers"][0]: contract["layers"]
    for contract in CONTRACTS
    if contract["type"] == "layers" and "containers" in contract
}


def rooms(layer: str) -> set[str]:
    return set(re.split(r"\s*[|:]\s*", layer))


@pytest.mark.parametrize("package", ["models", "service", "pipelines"])
def test_the_page_draws_the_floors_of_each_package_in_their_order(package):
    (drawing,) = re.findall(rf"```\n{package}/\n(.*?)```", PAGE, re.DOTALL)
    drawn = [rooms(line.split("  ")[1].strip()) for line in drawing.splitlines() if line.strip()]
    assert drawn == [rooms(layer) for layer in FLOORS[package]]
    assert len(drawn) <= 8


@pytest.mark.parametrize("package", ["models", "service", "pipelines"])
def test_every_module_and_folder_lies_on_a_floor(package):
    names = {
        path.stem
        for path in (PROJECT / package).iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem != "__init__"
    }
    assert names == set().union(*map(rooms, FLOORS[package]))


def test_every_rule_of_the_contracts_is_on_the_page():
    for contract in CONTRACTS:
        if contract["type"] == "forbidden":
            assert contract["name"] in PAGE, contract["name"]


def test_captum_is_forbidden_to_every_module_outside_attribution():
    (contract,) = [contract for contract in CONTRACTS if contract["name"].startswith("captum only")]
    everything = {f"models.{room}" for layer in FLOORS["models"] for room in rooms(layer)}
    assert set(contract["source_modules"]) == (everything - {"models.attribution"}) | {"pipelines", "service"}
