"""One job at a time on one folder of results: who comes second is told, and a dead owner's claim is taken
over.

On a disk of this machine a lock of the operating system holds, which ends with its process. In an object
store the owner writes a note every half minute; one that is older than two minutes, or whose process is no
longer on this machine, is a dead owner's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from models.errors import LucidaError
from pipelines.batch.store import LocalStore, Store
from pipelines.errors import DataError

_LOCK, _NOTE = ".lock", ".owner.json"
_BEAT_S, _DEAD_S, _SETTLE_S = 30.0, 120.0, 1.0


@contextmanager
def claimed(store: Store) -> Iterator[None]:
    """Hold a store for the job within; raises DataError where another holds it."""
    with _locked(store) if isinstance(store, LocalStore) else _noted(store):
        yield


@contextmanager
def _locked(store: LocalStore) -> Iterator[None]:
    store.folder.mkdir(parents=True, exist_ok=True)
    path = store.folder / _LOCK
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(handle, 200).decode(errors="replace") or "another process"
            raise DataError(f"{store.url} is being written by {owner}; wait for it.") from error
        if not path.exists() or not os.path.samestat(os.fstat(handle), path.stat()):
            # The owner before ended, and took the file away, while this one was being opened.
            raise DataError(f"{store.url} was being written until now; try again.")
        os.truncate(handle, 0)
        os.write(handle, _owner().encode())
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                path.unlink()
    finally:
        os.close(handle)


@contextmanager
def _noted(store: Store) -> Iterator[None]:
    token, stop = uuid.uuid4().hex, threading.Event()

    def beat() -> None:
        note = {
            "token": token, "owner": _owner(), "at": time.time(), "host": socket.gethostname(),
            "process": os.getpid(),
        }  # fmt: skip
        store.write(_NOTE, json.dumps(note).encode())

    def go_on() -> None:
        while not stop.wait(_BEAT_S):
            # A store that is away for a moment has two minutes.
            with contextlib.suppress(Exception):
                beat()

    _refuse_living(store, token)
    beat()
    time.sleep(_SETTLE_S)
    _refuse_living(store, token)
    thread = threading.Thread(target=go_on, name="lucida-claim", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        # Where the store is away the note grows old, and the work's own error is the one to tell.
        with contextlib.suppress(OSError, LucidaError):
            store.remove(_NOTE)


def _refuse_living(store: Store, token: str) -> None:
    """Raise DataError for a note of another owner that is alive."""
    if not store.exists(_NOTE):
        return
    try:
        note = json.loads(store.read(_NOTE))
        other, owner, age = note["token"], str(note["owner"]), time.time() - float(note["at"])
        gone = note.get("host") == socket.gethostname() and not _is_running(int(note["process"]))
    except (OSError, ValueError, KeyError, TypeError):
        return
    if other != token and age < _DEAD_S and not gone:
        raise DataError(f"{store.url} is being written by {owner}, {age:.0f} s ago; wait for it.")


def _is_running(process: int) -> bool:
    """Return whether this machine has a process of that number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _owner() -> str:
    return f"process {os.getpid()} on {socket.gethostname()}"
