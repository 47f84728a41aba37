"""A Postgres of one test's own."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.serving import free_port


@contextmanager
def running_postgres(folder: Path) -> Iterator[str]:
    """Yield the URI of a Postgres in a folder, or skip with what is missing."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    found = shutil.which("initdb") or (str(programs[-1]) if programs else None)
    if found is None:
        pytest.skip("needs Postgres: apt-get install postgresql")
    folder.mkdir(exist_ok=True)
    port = free_port()
    # Postgres refuses to run as root; Debian's package makes a user for it.
    root = os.geteuid() == 0
    become = ["runuser", "-u", "postgres", "--"] if root else []
    if root:
        for path in (folder, *list(folder.parents)[:3]):
            path.chmod(0o755)
        shutil.chown(folder, "postgres")
    commands, data = Path(found).parent, folder / "data"
    subprocess.run(
        [*become, commands / "initdb", "-D", data, "-U", "lucida", "--auth", "trust", "--no-sync"],
        check=True, capture_output=True, cwd="/",
    )  # fmt: skip
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
    control = [*become, commands / "pg_ctl", "-D", data, "-w"]
    subprocess.run(
        [*control, "-l", folder / "log", "-o", options, "start"],
        check=True, stdout=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip
    try:
        yield f"postgresql+psycopg2://lucida@127.0.0.1:{port}/postgres"
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=True, capture_output=True, cwd="/")
