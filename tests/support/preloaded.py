"""``lucida`` in real processes that begin with torch, MLflow and the like imported, and nothing of the
project.

A copy of the project whose code differs runs like the project itself: its modules are imported by each
command. Run as a script, this file is the process that has done the imports and becomes each command by a
fork.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

_PACKAGES = (
    "torch", "torchvision", "captum.attr", "mlflow", "mlflow.store.tracking.sqlalchemy_store", "pandas",
    "matplotlib.pyplot", "sklearn.metrics", "scipy.stats", "torchmetrics", "pyarrow.parquet", "typer",
    "rich.progress", "jinja2", "fsspec",
)  # fmt: skip


class Preloaded:
    """The process that has the packages."""

    def __init__(self) -> None:
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "CRITICAL"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment, cwd="/",
        )  # fmt: skip

    def run(
        self, words: list[str], folder: Path, environment: dict[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Run ``lucida WORDS`` in a folder, whose modules come first."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory() as aside:
            logs = [str(Path(aside) / name) for name in ("out", "err")]
            request = {"words": words, "folder": str(folder), "environment": environment, "logs": logs}
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            code = int(self._process.stdout.readline())
            return subprocess.CompletedProcess(words, code, *(Path(log).read_text() for log in logs))

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def _become(request: dict[str, object]) -> None:
    folder = str(request["folder"])
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(request["environment"])  # type: ignore[call-overload]
    for number, log in enumerate(request["logs"], start=1):  # type: ignore[call-overload]
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.path.insert(0, folder)
    sys.argv = ["lucida", *request["words"]]  # type: ignore[misc]
    from pipelines.cli.app import main

    main()


def _serve() -> None:
    for name in _PACKAGES:
        importlib.import_module(name)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            _become(json.loads(line))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    _serve()
