"""Folders that a job reads from and writes to: on this machine, or in an object store.

Object stores are those of Arrow: s3://, gs:// and az:// (abfs://), opened as
:mod:`pipelines.batch.object_systems` says. A file is seen whole or not at all: on a disk by renaming, in an
object store because an upload ends with its last part.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import pyarrow.fs as arrow_fs

from models.atomic_write import atomic_write
from models.errors import ConfigError
from pipelines.batch.object_systems import SCHEMES, open_system
from pipelines.errors import StoreUnavailable

T = TypeVar("T")
_TRIES, _FIRST_WAIT_S = 4, 0.5
_BUFFER = 2**18


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a store."""

    name: str
    """Path within the store."""
    stamp: tuple[int, int]
    """Size in bytes, and time of the last change in nanoseconds."""


class Store(Protocol):
    """A folder somewhere; safe to send to another process."""

    @property
    def url(self) -> str:
        """Where it is, for people."""
        ...

    def read(self, name: str) -> bytes:
        """Return a file's content; raises OSError, FileNotFoundError where there is none."""
        ...

    def open(self, name: str) -> Any:
        """Open a file to be read at any place; raises OSError."""
        ...

    def write(self, name: str, data: bytes, *, whole: bool = True) -> None:
        """Write a file, whole or not at all; without ``whole`` a cut may leave half of it, which is faster.

        Raises OSError.
        """
        ...

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""
        ...

    def files(self, under: str = "") -> Iterator[StoredFile]:
        """Yield the files below a folder, in no order; none where there is no such folder."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        ...


@dataclass(frozen=True, slots=True)
class LocalStore:
    """A folder of this machine."""

    folder: Path

    @property
    def url(self) -> str:
        """The folder."""
        return str(self.folder)

    def read(self, name: str) -> bytes:
        """Return a file's content."""
        return (self.folder / name).read_bytes()

    def open(self, name: str) -> Any:
        """Open a file to be read."""
        return (self.folder / name).open("rb")

    def write(self, name: str, data: bytes, *, whole: bool = True) -> None:
        """Write a file beside its place, flush and rename it."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if whole:
            atomic_write(path, data)
        else:
            path.write_bytes(data)

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""
        return (self.folder / name).exists()

    def files(self, under: str = "") -> Iterator[StoredFile]:
        """Yield the files below a folder."""
        for path in (self.folder / under).rglob("*"):
            if path.is_file():
                status = path.stat()
                name = path.relative_to(self.folder).as_posix()
                yield StoredFile(name, (status.st_size, status.st_mtime_ns))

    def remove(self, name: str) -> None:
        """Remove a file."""
        (self.folder / name).unlink(missing_ok=True)


@dataclass(frozen=True)
class ObjectStore:
    """A prefix of a bucket; what fails for a moment is tried again, four times in all."""

    url: str
    _opened: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def read(self, name: str) -> bytes:
        """Return an object's content."""

        def load(system: Any, root: str) -> bytes:
            with system.open_input_stream(_join(root, name)) as file:
                return bytes(file.read())

        return self.retried(load)

    def open(self, name: str) -> Any:
        """Open an object to be read at any place, by ranges that are tried again too."""
        file = self.retried(lambda system, root: system.open_input_file(_join(root, name)))
        return io.BufferedReader(_RangeReader(self, file), _BUFFER)

    def write(self, name: str, data: bytes, *, whole: bool = True) -> None:
        """Upload an object, which is always whole."""

        def save(system: Any, root: str) -> None:
            with system.open_output_stream(_join(root, name)) as file:
                file.write(data)

        self.retried(save)

    def exists(self, name: str) -> bool:
        """Return whether there is such an object."""
        return bool(self._info(name).type == arrow_fs.FileType.File)

    def files(self, under: str = "") -> Iterator[StoredFile]:
        """Yield the objects below a prefix."""

        def find(system: Any, root: str) -> list[Any]:
            selector = arrow_fs.FileSelector(_join(root, under), recursive=True, allow_not_found=True)
            return list(system.get_file_info(selector))

        _, root = self._system()
        for info in self.retried(find):
            if info.type == arrow_fs.FileType.File:
                yield StoredFile(info.path[len(root) :].lstrip("/"), (info.size, info.mtime_ns or 0))

    def remove(self, name: str) -> None:
        """Remove an object."""
        if self.exists(name):
            self.retried(lambda system, root: system.delete_file(_join(root, name)))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the connection behind."""
        return {"url": self.url, "_opened": {}}

    def _info(self, name: str) -> Any:
        return self.retried(lambda system, root: system.get_file_info(_join(root, name)))

    def _system(self) -> tuple[Any, str]:
        if "system" not in self._opened:
            try:
                system, root = open_system(self.url)
            except (OSError, ValueError, NotImplementedError) as error:
                raise StoreUnavailable(f"{self.url} cannot be opened: {_reason(error)}") from error
            self._opened["system"] = (system, root)
        system, root = self._opened["system"]
        return system, root

    def retried(self, work: Callable[[Any, str], T]) -> T:
        """Return what work on Arrow's file system and the root there gives; raises StoreUnavailable."""
        system, root = self._system()
        for attempt in range(_TRIES):
            try:
                return work(system, root)
            except FileNotFoundError:
                raise
            except OSError as error:
                if _is_final(error) or attempt == _TRIES - 1:
                    raise StoreUnavailable(f"{self.url}: {_reason(error)}") from error
                time.sleep(_FIRST_WAIT_S * 2**attempt)
        raise AssertionError("unreachable")


class _RangeReader(io.RawIOBase):
    """An object's bytes, read by ranges; each that fails for a moment is asked for again."""

    def __init__(self, store: ObjectStore, file: Any) -> None:
        self._store, self._file, self._place = store, file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self._file.size()}[whence]
        self._place = max(0, start + offset)
        return self._place

    def tell(self) -> int:
        return self._place

    def readinto(self, buffer: Any) -> int:
        data = self._store.retried(lambda *_: self._file.read_at(len(buffer), self._place))
        buffer[: len(data)] = data
        self._place += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def open_store(place: str | Path) -> Store:
    """Return the store at a path or an address; raises ConfigError for an address of another kind."""
    text = str(place)
    scheme = scheme_of(text)
    if scheme is None:
        return LocalStore(Path(text))
    if scheme == "file":
        return LocalStore(Path(text.removeprefix("file://")))
    if scheme not in SCHEMES:
        choices = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError(f"{text} must be a path of this machine or begin with one of: {choices}.")
    if not text.partition("://")[2].strip("/"):
        raise ConfigError(f"{text} names no bucket.")
    return ObjectStore(text.rstrip("/"))


def open_parent(place: str) -> tuple[Store, str]:
    """Return the store of the folder that a file's path or address is in, and the file's name there."""
    if scheme_of(place) is None:
        path = Path(place)
        return LocalStore(path.parent), path.name
    folder, _, name = place.rpartition("/")
    return open_store(folder), name


def scheme_of(place: str) -> str | None:
    """Return the scheme of an address, such as s3; None for a path."""
    scheme, separator, _ = place.partition("://")
    return scheme.lower() if separator and scheme.isalnum() else None


def _join(root: str, name: str) -> str:
    return f"{root}/{name}" if name else root


_FINAL = ("ACCESS_DENIED", "AccessDenied", "NO_SUCH_BUCKET", "NoSuchBucket", "INVALID_ACCESS_KEY",
          "InvalidAccessKeyId", "SIGNATURE", "No response body", "Unauthorized", "Forbidden")  # fmt: skip


def _is_final(error: OSError) -> bool:
    """Return whether another try would come to the same."""
    return any(word in str(error) for word in _FINAL)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
