"""What the tests of the pipelines share."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture(scope="session")
def forked() -> Iterator[ModuleType]:
    """The module that starts commands; its processes find it by the path that they are given."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield importlib.import_module("forked")
