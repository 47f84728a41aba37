"""The command line in real processes that begin with the imports done.

Ten seconds of a short training go into importing torch, MLflow and Captum. Here one process imports them
once, and a child of it becomes each command: with a folder, an environment, a session and an exit code of its
own, to be stopped and killed like any other.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
from multiprocessing import forkserver
from pathlib import Path
from subprocess import TimeoutExpired

_FORKS = multiprocessing.get_context("forkserver")
# What training imports, at the top of its modules or on the way; nothing of it computes when imported.
_FORKS.set_forkserver_preload(
    [
        "pipelines.cli.app",
        "pipelines.training.train",
        "pipelines.release.promote",
        "pipelines.reports.review",
        "pipelines.reports.compare",
        "mlflow.store.tracking.sqlalchemy_store",
        "matplotlib.pyplot",
        "pandas",
    ]
)


class Command:
    """``lucida ARGUMENTS`` that has been started; what it says is appended to ``log``."""

    def __init__(
        self, arguments: tuple[str, ...], folder: Path, log: Path, environment: dict[str, str]
    ) -> None:
        _begin()
        self._process = _FORKS.Process(target=_become, args=(arguments, folder, log, environment))
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """The exit code, or None while it runs; a signal is negative."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int:
        """The exit code, once there is one."""
        self._process.join(seconds)
        code = self.poll()
        if code is None:
            raise TimeoutExpired("lucida", seconds or 0.0)
        return code

    def kill(self) -> None:
        """Send SIGKILL."""
        self._process.kill()


def _begin() -> None:
    """Start the process that imports, with what the command sets before it imports MLflow."""
    before = dict(os.environ)
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "CRITICAL"}
    try:
        forkserver.ensure_running()
    finally:
        os.environ.clear()
        os.environ.update(before)


def _become(arguments: tuple[str, ...], folder: Path, log: Path, environment: dict[str, str]) -> None:
    os.setsid()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sink = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(sink, 1)
    os.dup2(sink, 2)
    sys.argv = ["lucida", *arguments]
    from pipelines.cli.app import main

    try:
        main()
    finally:
        # As at the end of any interpreter; multiprocessing leaves them out.
        atexit._run_exitfuncs()
