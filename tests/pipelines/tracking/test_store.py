"""The address of the tracker, and a store that several commands meet new."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import pytest

from models.errors import ConfigError
from pipelines.tracking.store import check_address
from tests.support.serving import PROJECT

OPEN = "from pipelines.tracking.runs import open_runs; print(open_runs('run', ['head'], folder='f')[0])"


@pytest.mark.soak
def test_commands_that_meet_a_new_store_at_once_all_open_their_runs(tmp_path):
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/new.db",
        "PYTHONPATH": str(PROJECT),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", OPEN], cwd=tmp_path, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    ended = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0, 0, 0], ended
    with sqlite3.connect(tmp_path / "new.db") as store:
        assert store.execute("select count(*) from runs where name = 'run'").fetchone() == (3,)
    assert {path.name for path in tmp_path.iterdir()} <= {"new.db", "mlruns"}, "no lock is left in the folder"


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost:5000",
        "https://host/path",
        "sqlite:///mlflow.db",
        "postgresql+psycopg://u:p@h/d",
        "databricks",
    ],
)
def test_addresses_with_a_scheme_are_left_to_mlflow(address):
    check_address(address)


@pytest.mark.parametrize("address", ["localhost:5000", "mlruns", "/var/mlruns", "http:/host", ""])
def test_an_address_without_a_scheme_is_refused_with_the_choices(address):
    with pytest.raises(ConfigError, match=r"sqlite:///FILE"):
        check_address(address)
