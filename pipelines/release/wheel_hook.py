"""What hatchling asks when it builds the package: a wheel has everything below ``camera_lucida``.

An editable install leads to the repository, where the packages have their short names; it gets the same
command by a module of one line.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_COMMAND = """from {package}.cli.app import main

__all__ = ["main"]
"""


class WheelHook(BuildHookInterface):  # type: ignore[type-arg]
    """hatchling's hook, found by `tool.hatch.build.targets.wheel.hooks.custom`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Put the files of the wheel together."""
        sys.path.insert(0, self.root)
        from pipelines.tracking.namespace import NAMESPACE, copy_into_namespace

        self._aside = aside = Path(tempfile.mkdtemp(prefix="lucida-wheel-"))
        if version == "editable":
            folder = aside / NAMESPACE
            folder.mkdir()
            (folder / "__init__.py").write_text("")
            (folder / "command.py").write_text(_COMMAND.format(package="pipelines"))
            build_data["force_include_editable"][str(folder)] = NAMESPACE
            return
        folder = copy_into_namespace(Path(self.root), aside)
        (folder / "command.py").write_text(_COMMAND.format(package=f"{NAMESPACE}.pipelines"))
        shutil.copy(Path(self.root) / "bentofile.yaml", folder)
        build_data["force_include"][str(folder)] = NAMESPACE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the copy that the wheel was made of."""
        shutil.rmtree(self._aside)
