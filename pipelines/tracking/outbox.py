"""News for the tracker, kept on disk until it has been delivered, in order, and delivered by a thread of its
own.

Training never waits for the tracker: what it says is appended to a file at once. While the tracker is away or
its database locked, the file grows; later, or when the run is resumed, everything is replayed. Every kind of
news may be delivered twice without a double: a crash between delivering and noting it does no harm.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from models.atomic_write import atomic_write
from pipelines.errors import TrackerUnavailable, TrainingError

TRACKER_ERRORS = (MlflowException, SQLAlchemyError, OSError)
"""What a tracker that is away, locked or full raises."""

_PAUSES_S = (0.2, 1.0, 3.0, 10.0, 30.0)
"""Between attempts after the first, second, … failure in a row."""

Message = dict[str, Any]


class Outbox:
    """An ordered file of news and the thread that delivers it."""

    def __init__(self, path: Path, deliver: Callable[[Message], None]) -> None:
        """Take up what an earlier process left undelivered."""
        self._path, self._mark = path, path.with_suffix(".delivered")
        self._deliver = deliver
        self._changed = threading.Condition()
        self._last_failure = ""
        self._hurried = False
        self._closed = False
        self.refused: list[str] = []
        """Why the tracker would not take some news."""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._delivered = self._read_mark()
            self._waiting: list[Message] = self._left_over()
            # Not buffered: what a full disk did not take must not reach the file later by itself.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise TrainingError(
                f"The run's news cannot be kept in {path.parent}: {error.strerror}."
            ) from error
        self._thread = threading.Thread(target=self._run, name="outbox", daemon=True)
        self._thread.start()

    def add(self, **news: Any) -> None:
        """Keep a piece of news and let it be delivered; raises TrainingError when the disk is full."""
        line = json.dumps(news).encode() + b"\n"
        with self._changed:
            whole = os.fstat(self._file.fileno()).st_size
            try:
                if self._file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(self._file.fileno())
            except OSError as error:
                with suppress(OSError):
                    self._file.truncate(whole)
                raise TrainingError(
                    f"The run's news cannot be kept in {self._path.parent} ({error.strerror}); what was kept "
                    "before is whole. Make room and resume the run."
                ) from error
            self._waiting.append(news)
            self._changed.notify_all()

    def flush(self, patience_s: float) -> None:
        """Wait until everything is delivered; raises TrackerUnavailable with the reason after that time."""
        until = time.monotonic() + patience_s
        with self._changed:
            self._hurried = True
            self._changed.notify_all()
            while self._waiting:
                left = until - time.monotonic()
                if left <= 0:
                    raise TrackerUnavailable(
                        f"MLflow has not taken {len(self._waiting)} pieces of news within {patience_s:.0f} s "
                        f"({self._last_failure or 'it does not answer'}); they are kept in {self._path}."
                    )
                self._changed.wait(left)
            self._hurried = False

    def close(self) -> None:
        """Stop delivering; what was not delivered stays in the file."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join(timeout=5)
        # A thread that hangs in a call is left to the process's end; the file is no longer its concern.
        self._file.close()

    # ------------------------------------------------------------ the delivering thread

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                while not self._waiting and not self._closed:
                    self._changed.wait()
                if self._closed:
                    return
                news = self._waiting[0]
            try:
                self._deliver(news)
            except Exception as error:
                # Stores for artefacts raise what their own libraries raise; whatever it is, the news is kept,
                # and a thread that ended here would keep all that follows as well.
                if _is_refused(error):
                    # Said again it would be refused again, and hold up all that comes after it.
                    self.refused.append(" ".join(str(error).split())[:300])
                else:
                    failures += 1
                    self._pause(str(error) or type(error).__name__, failures)
                    continue
            failures = 0
            with self._changed:
                self._waiting.pop(0)
                self._note_delivered()
                self._changed.notify_all()

    def _pause(self, reason: str, failures: int) -> None:
        pause = _PAUSES_S[min(failures, len(_PAUSES_S)) - 1]
        with self._changed:
            self._last_failure = " ".join(reason.split())[:300]
            if not self._hurried:
                self._changed.wait_for(lambda: self._closed or self._hurried, timeout=pause)
            if self._hurried:
                self._changed.wait_for(lambda: self._closed, timeout=min(pause, 1.0))

    # ------------------------------------------------------------ the file

    def _note_delivered(self) -> None:
        self._delivered += 1
        # Lost at a crash, this only means that some news is delivered again.
        with suppress(OSError):
            atomic_write(self._mark, str(self._delivered).encode())

    def _read_mark(self) -> int:
        """Return how many lines were delivered; a mark that a power cut emptied means none, for saying twice
        is harmless.
        """
        try:
            return int(self._mark.read_text())
        except (OSError, ValueError):
            return 0

    def _left_over(self) -> list[Message]:
        """Return what the file holds beyond what was delivered; a line that a crash cut off is dropped."""
        if not self._path.is_file():
            return []
        lines = self._path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            with self._path.open("r+b") as file:
                file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        return [json.loads(line) for line in lines[self._delivered :]]


def _is_refused(error: Exception) -> bool:
    """Return whether the tracker understood and will never take it; a database's own troubles pass."""
    understood = isinstance(error, MlflowException) and error.error_code == "INVALID_PARAMETER_VALUE"
    return understood and not isinstance(error.__cause__, SQLAlchemyError)


def pack_bytes(data: bytes) -> str:
    """Pack bytes as text for an entry."""
    return base64.b64encode(data).decode()


def unpack_bytes(text: str) -> bytes:
    """Unpack the bytes of :func:`pack_bytes`."""
    return base64.b64decode(text)
