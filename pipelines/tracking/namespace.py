"""The project's code under one name, for where it lies beside code of others.

In this repository the packages are called ``models``, ``service`` and ``pipelines``, as users call theirs. So
what is installed from a wheel, and what is logged with a model, is a copy below ``camera_lucida``, whose
imports say so. Nothing but the standard library is needed here: the wheel's build hook runs this as well.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

NAMESPACE = "camera_lucida"
PACKAGES = ("models", "service", "pipelines")
_IMPORT = re.compile(rf"^(\s*)(from|import) ({'|'.join(PACKAGES)})(?=[. \n]|$)", re.MULTILINE)
_DOC = '"""Camera Lucida: fine-tune, serve and explain image classifiers."""\n'


def copy_into_namespace(root: Path, target: Path, packages: Sequence[str] = PACKAGES) -> Path:
    """Copy packages that lie in ``root`` to a new folder ``target``/camera_lucida; return that folder."""
    folder = target / NAMESPACE
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(_DOC)
    for package in packages:
        shutil.copytree(root / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (folder / package).rglob("*.py"):
            path.write_text(rename_imports(path.read_text()))
    return folder


def rename_imports(source: str) -> str:
    """Return Python source whose imports of the packages are of those below the namespace.

    Only imports are rewritten: no code names a module in a text, but by ``__name__`` and ``__package__``.
    """

    def renamed(match: re.Match[str]) -> str:
        indent, word, package = match.groups()
        if word == "from":
            return f"{indent}from {NAMESPACE}.{package}"
        # `import models` is used as `models`; no module is imported by a dotted name.
        return f"{indent}from {NAMESPACE} import {package}"

    return _IMPORT.sub(renamed, source)
