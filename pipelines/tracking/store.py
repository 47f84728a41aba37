"""The MLflow store: its address is checked, and its tables are made by one command where they are new.

The store is MLflow's own choice (sqlite:///mlflow.db in the working folder) or what MLFLOW_TRACKING_URI
names.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from sqlalchemy.engine import make_url

from models.errors import ConfigError
from pipelines.errors import TrackerUnavailable
from pipelines.tracking.outbox import TRACKER_ERRORS

_WITHOUT_SCHEME = ("databricks", "databricks-uc", "uc")
_opened: set[str] = set()


def tracking_client() -> mlflow.MlflowClient:
    """Return a client of the store; raises ConfigError for an address that names none, and TrackerUnavailable
    for a store that is away.
    """
    uri = str(mlflow.get_tracking_uri())
    check_address(uri)
    if uri not in _opened and uri.startswith("sqlite:"):
        # Two commands that make the same tables at once fail, both of them.
        with _one_at_a_time(uri), tracker_call("No table can be made"):
            mlflow.MlflowClient().search_experiments(max_results=1)
    _opened.add(uri)
    return mlflow.MlflowClient()


def check_address(uri: str) -> None:
    """Raise ConfigError for an address without a scheme, which MLflow takes for a folder or fails at."""
    if "://" in uri or uri in _WITHOUT_SCHEME:
        return
    raise ConfigError(
        f"MLFLOW_TRACKING_URI is {uri!r}, an address without a scheme; write http://HOST:PORT, https://HOST, "
        "sqlite:///FILE, or postgresql://USER:PASSWORD@HOST/DATABASE."
    )


def tracking_uri_without_password() -> str:
    """Return the tracking URI without a password."""
    return re.sub(r"://([^:/@]+):[^@/]+@", r"://\1:***@", str(mlflow.get_tracking_uri()))


@contextmanager
def tracker_call(what: str) -> Iterator[None]:
    """Turn what an absent tracker raises into TrackerUnavailable."""
    try:
        yield
    except TRACKER_ERRORS as error:
        reason = " ".join(str(error).split())[:300]
        raise TrackerUnavailable(f"{what} in {tracking_uri_without_password()}: {reason}") from error


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Hold a lock for a database file, over all processes of this machine."""
    database = Path(make_url(uri).database or "").absolute()
    mark = hashlib.sha256(os.fsencode(database)).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"lucida-{os.getuid()}-{mark}.lock"
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
