"""What a job explains: the pictures of a folder, of a list, of a table, of archives, or of an object store.

A source knows its items before any of them is read, so that a job has parts that can be taken up again; it
holds no open file, so that it can be sent to other processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Protocol

import httpx

from models.errors import ConfigError, ImageTooLarge, UnreadableImage
from models.images.decode import IMAGE_SUFFIXES, Limits
from pipelines.batch.store import LocalStore, Store, open_parent, open_store, scheme_of
from pipelines.data.listing import count_system_files, list_images
from pipelines.errors import DataError

_FETCH_SECONDS = 30.0
WEB = ("http", "https")


@dataclass(frozen=True, slots=True)
class SourceItem:
    """A picture of a source."""

    name: str
    """For people, and unlike that of any other item."""
    place: str
    """Where the source finds it."""
    stamp: tuple[int | str, ...] = ()
    """What changes when its content does: size and time."""
    truth: str | None = None
    """Its true class, where the source says so."""
    extra: str | None = None
    """JSON of what else the source says about it."""


class Source(Protocol):
    """Pictures to explain."""

    @property
    def where(self) -> str:
        """Where they are, for people."""
        ...

    @property
    def items(self) -> tuple[SourceItem, ...]:
        """All of them, in an order that stays."""
        ...

    def read(self, item: SourceItem, limits: Limits) -> bytes:
        """Return the encoded picture; raises UnreadableImage, or StoreUnavailable."""
        ...


@dataclass(frozen=True)
class FileSource:
    """A source of files: of a folder, of a list or of a table, each by its path or address."""

    where: str
    store: Store
    items: tuple[SourceItem, ...]
    allow_http: bool = False
    """Whether addresses of the web may be fetched."""

    def read(self, item: SourceItem, limits: Limits) -> bytes:
        """Return a file's content, or what an address of the web answers."""
        scheme = scheme_of(item.place)
        if scheme in WEB:
            return self._fetch(item.place, limits)
        store, name = (self.store, item.place) if scheme is None else open_parent(item.place)
        try:
            # The file says how long it is before it is read.
            if isinstance(store, LocalStore):
                check_size((store.folder / name).stat().st_size, limits)
            data = store.read(name)
        except OSError as error:
            raise UnreadableImage(
                f"The file cannot be read: {error.strerror or type(error).__name__}."
            ) from error
        check_size(len(data), limits)
        return data

    def _fetch(self, address: str, limits: Limits) -> bytes:
        if not self.allow_http:
            raise UnreadableImage("An address of the web is fetched only with --allow-http.")
        try:
            with httpx.stream("GET", address, timeout=_FETCH_SECONDS, follow_redirects=True) as reply:
                reply.raise_for_status()
                parts, size = [], 0
                for part in reply.iter_bytes():
                    size += len(part)
                    check_size(size, limits)
                    parts.append(part)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UnreadableImage(f"The address cannot be fetched: {error}.") from error
        return b"".join(parts)


def check_size(size: int, limits: Limits) -> None:
    """Raise ImageTooLarge for a file of too many bytes."""
    if size > limits.max_bytes:
        raise ImageTooLarge(f"The picture has {size:,} bytes; the limit is {limits.max_bytes:,}.")


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """Options of reading a source."""

    column: str | None = None
    """Column of a table that holds the path or the bytes; found by its usual names without."""
    truth: str | None = None
    """Column of a table that holds the true class."""
    allow_http: bool = False


def open_source(
    place: str | Path, options: SourceOptions | None = None, *, out: Path | None = None
) -> Source:
    """Return the source at a path, a pattern or an address, by what it is; what lies in the folder ``out`` is
    the job's own and no part of it. Raises DataError, ConfigError or StoreUnavailable.
    """
    from pipelines.batch.archives import ARCHIVE_SUFFIXES, open_archives
    from pipelines.batch.tables import TABLE_SUFFIXES, find_table, open_list, open_table

    options, text = options or SourceOptions(), str(place)
    local = scheme_of(text) is None
    if any(mark in text for mark in "*?[") and not (local and Path(text).exists()):
        matches = _matches(text)
        if matches and all(match.endswith(ARCHIVE_SUFFIXES) for match in matches):
            return open_archives(text, matches)
        return _listed(text, [match for match in matches if _is_image_name(match)], options)
    suffix = Path(text).suffix.lower()
    if local and not Path(text).exists():
        raise DataError(f"There is no file or folder {text}.")
    if suffix in TABLE_SUFFIXES and not (local and Path(text).is_dir()):
        return open_table(text, options)
    if text.endswith(ARCHIVE_SUFFIXES) and not (local and Path(text).is_dir()):
        return open_archives(text, [text])
    if suffix in (".txt", ".lst") and not (local and Path(text).is_dir()):
        return open_list(text, options)
    if not local:
        return _open_prefix(text)
    if (table := find_table(Path(text))) is not None:
        return open_table(str(table), options)
    return _open_folder(Path(text), out)


def local_files(source: Source) -> dict[str, Path]:
    """Return the file of each picture by its name; raises ConfigError where they are no files of this
    machine.
    """
    if not isinstance(source, FileSource) or not isinstance(source.store, LocalStore):
        raise ConfigError(
            f"FiftyOne shows pictures that are files of this machine; those of {source.where} are not. "
            "Choose a folder, a pattern or a list of files, or leave --fiftyone out."
        )
    return {item.name: (source.store.folder / item.place).absolute() for item in source.items}


def count_left_out(place: str | Path) -> dict[str, int]:
    """Return how many pictures of which hidden or system folder of a local folder are no part of a source."""
    if scheme_of(str(place)) is not None or not Path(place).is_dir():
        return {}
    root = Path(place).resolve()
    return {folder.relative_to(root).as_posix(): n for folder, n in count_system_files(root).items()}


def file_items(folder: Path, names: Iterable[str]) -> tuple[SourceItem, ...]:
    """Return the items of a folder's files, with names that can be printed."""
    items, taken = [], set()
    for place in names:
        path = folder / place
        # A link that leads nowhere becomes an error row; it has no size but its own.
        status = path.stat() if path.exists() else path.lstat()
        name = place.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        while name in taken:
            name += "'"
        taken.add(name)
        items.append(SourceItem(name, place, (status.st_size, status.st_mtime_ns)))
    return tuple(items)


def _open_folder(place: Path, out: Path | None) -> FileSource:
    root = place.resolve()
    inner = out.resolve() if out is not None else None
    if root.is_file():
        folder, names = root.parent, [root.name]
    else:
        folder = root
        names = sorted(
            path.relative_to(root).as_posix()
            for path in list_images(root)
            if inner is None or not path.is_relative_to(inner)
        )
    if not names:
        raise DataError(f"The folder {root} has no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    return FileSource(str(folder), LocalStore(folder), file_items(folder, names))


def _open_prefix(url: str) -> FileSource:
    """Return the pictures below a prefix of an object store, or the single one that it names."""
    store = open_store(url)
    if _is_image_name(url):
        store, name = open_parent(url)
        return FileSource(url, store, (SourceItem(name, name),))
    files = sorted((file for file in store.files() if _is_image_name(file.name)), key=lambda file: file.name)
    if not files:
        raise DataError(f"{url} has no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    return FileSource(store.url, store, tuple(SourceItem(file.name, file.name, file.stamp) for file in files))


def _matches(pattern: str) -> list[str]:
    """Return what a pattern matches, on this machine or in an object store; raises DataError for nothing."""
    if scheme_of(pattern) is None:
        matches = sorted(str(path) for path in _glob(Path(pattern)))
    else:
        fixed = pattern[: min(pattern.find(mark) for mark in "*?[" if mark in pattern)].rpartition("/")[0]
        store = open_store(fixed)
        names = (f"{fixed}/{file.name}" for file in store.files())
        matches = sorted(name for name in names if fnmatchcase(name, pattern))
    if not matches:
        raise DataError(f"Nothing matches {pattern}.")
    return matches


def _glob(pattern: Path) -> Iterable[Path]:
    """Yield what a pattern matches, from its first folder without a mark on."""
    parts = pattern.parts
    first = next(n for n, part in enumerate(parts) if any(mark in part for mark in "*?["))
    return Path(*parts[:first]).glob("/".join(parts[first:]))


def _listed(where: str, places: Sequence[str], options: SourceOptions) -> FileSource:
    if not places:
        raise DataError(f"Nothing that matches {where} is a picture ({', '.join(IMAGE_SUFFIXES)}).")
    if scheme_of(where) is None:
        base = Path(os.path.commonpath([str(Path(place).absolute().parent) for place in places]))
        names = [os.path.relpath(Path(place).absolute(), base) for place in places]
        return FileSource(where, LocalStore(base), file_items(base, names))
    items = tuple(SourceItem(place, place) for place in places)
    return FileSource(where, open_store(where.rpartition("/")[0]), items, options.allow_http)


def _is_image_name(name: str) -> bool:
    return name.lower().endswith(tuple(IMAGE_SUFFIXES)) and not Path(name).name.startswith(".")
