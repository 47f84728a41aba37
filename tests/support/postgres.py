"""A Postgres of one test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.serving import free_port


@contextmanager
def running_postgres() -> Iterator[str]:
    """Yield the URI of a Postgres in a temporary folder, or skip with what is missing."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = str(programs[-1]) if programs else shutil.which("initdb")
    if found is None:
        pytest.skip("needs Postgres: apt-get install postgresql")
    # Beside pytest's folders, which only their owner may enter; and a socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        # Postgres refuses to run as root; Debian's package makes a user for it.
        root = os.geteuid() == 0
        become = ["runuser", "-u", "postgres", "--"] if root else []
        if root:
            shutil.chown(name, "postgres")
        folder, programs_folder = Path(name), Path(found).parent
        data = folder / "data"
        _run(*become, programs_folder / "initdb", "-D", data, "-U", "lucida", "--auth", "trust", "--no-sync")
        port = free_port()
        options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        control = [*become, programs_folder / "pg_ctl", "-D", data, "-w"]
        _run(*control, "-l", folder / "log", "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://lucida@127.0.0.1:{port}/postgres"
        finally:
            _run(*control, "-m", "immediate", "stop")


def _run(*command: str | Path) -> None:
    """Run one of Postgres' programs; its words go to the test's output, which pytest shows when it fails."""
    # A server that outlives the command would hold a pipe open: its output goes to the test's own.
    subprocess.run(command, check=True, cwd="/", stdout=subprocess.DEVNULL)
