"""Sources within archives: zip files, and tar files as WebDataset has them; nothing is unpacked.

Members are read by their place in the archive, so their names may be anything: no path is made of them.
"""

from __future__ import annotations

import json
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from models.errors import UnreadableImage
from models.images.decode import IMAGE_SUFFIXES, Limits
from pipelines.batch.sources import SourceItem, check_size
from pipelines.batch.store import open_parent
from pipelines.data.listing import is_system_name
from pipelines.errors import DataError

ARCHIVE_SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
_COMPRESSED = (".tar.gz", ".tgz")
_MOST_MEMBERS = 20_000_000
_NOTES = (".cls", ".json", ".txt")
"""Beside a picture of the same stem: its class, and what else is known of it."""
_MOST_NOTE_BYTES = 64_000


@dataclass(frozen=True)
class ArchiveSource:
    """A source of the pictures of one or more archives."""

    where: str
    items: tuple[SourceItem, ...]

    def read(self, item: SourceItem, limits: Limits) -> bytes:
        """Return a member's content; raises UnreadableImage."""
        archive, _, member = item.place.partition("\n")
        store, name = open_parent(archive)
        try:
            with store.open(name) as file:
                if archive.endswith(".zip"):
                    return _read_zip(file, int(member), limits)
                start, size = (int(number) for number in member.split(":"))
                check_size(size, limits)
                file.seek(start)
                return bytes(file.read(size))
        except (OSError, zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
            raise UnreadableImage(f"The archive's member cannot be read: {error}.") from error


def open_archives(where: str, archives: Sequence[str]) -> ArchiveSource:
    """Return the source of all pictures in these archives; raises DataError."""
    items: list[SourceItem] = []
    for archive in archives:
        if archive.endswith(_COMPRESSED):
            raise DataError(f"{archive} is compressed as a whole, so no member can be read alone; unpack it.")
        prefix = f"{PurePosixPath(archive).name}/" if len(archives) > 1 else ""
        try:
            members = _zip_items(archive) if archive.endswith(".zip") else _tar_items(archive)
            items += [_named(item, prefix) for item in members]
        except (OSError, zipfile.BadZipFile, tarfile.TarError) as error:
            raise DataError(f"The archive {archive} cannot be read: {error}.") from error
        if len(items) > _MOST_MEMBERS:
            raise DataError(f"{where} has more than {_MOST_MEMBERS:,} pictures.")
    if not items:
        raise DataError(f"{where} has no pictures ({', '.join(IMAGE_SUFFIXES)}).")
    return ArchiveSource(where, _distinct(items))


def _read_zip(file: object, number: int, limits: Limits) -> bytes:
    with zipfile.ZipFile(file) as archive:  # type: ignore[call-overload]
        info = archive.infolist()[number]
        check_size(info.file_size, limits)
        with archive.open(info) as member:
            # What a member says of its size may be a lie.
            data = member.read(limits.max_bytes + 1)
    check_size(len(data), limits)
    return bytes(data)


def _zip_items(archive: str) -> Iterator[SourceItem]:
    store, name = open_parent(archive)
    with store.open(name) as file, zipfile.ZipFile(file) as members:
        for number, info in enumerate(members.infolist()):
            if not info.is_dir() and _is_picture(info.filename):
                yield SourceItem(info.filename, f"{archive}\n{number}", (info.file_size, info.CRC))


def _tar_items(archive: str) -> Iterator[SourceItem]:
    """Yield the pictures of a tar file, with what lies beside them under the same stem."""
    store, name = open_parent(archive)
    notes: dict[str, dict[str, str]] = {}
    images: list[tuple[str, str, int]] = []
    with store.open(name) as file, tarfile.open(fileobj=file, mode="r:") as members:
        for info in members:
            if not info.isreg():
                continue
            stem, suffix = _stem(info.name)
            if _is_picture(info.name):
                images.append((info.name, f"{archive}\n{info.offset_data}:{info.size}", info.size))
            elif suffix in _NOTES and info.size <= _MOST_NOTE_BYTES:
                content = members.extractfile(info)
                if content is not None:
                    notes.setdefault(stem, {})[suffix] = content.read().decode("utf-8", "replace").strip()
    for member, place, size in images:
        own = notes.get(_stem(member)[0], {})
        yield SourceItem(member, place, (size,), own.get(".cls"), _extra(own))


def _extra(notes: dict[str, str]) -> str | None:
    extra: dict[str, object] = {}
    if ".json" in notes:
        try:
            extra["json"] = json.loads(notes[".json"])
        except ValueError:
            extra["json"] = notes[".json"]
    if ".txt" in notes:
        extra["txt"] = notes[".txt"]
    return json.dumps(extra, ensure_ascii=False) if extra else None


def _stem(name: str) -> tuple[str, str]:
    """Return a member's name up to the first dot of its last part, as WebDataset groups them, and the
    rest.
    """
    folder, _, last = name.rpartition("/")
    stem, dot, suffix = last.partition(".")
    return f"{folder}/{stem}", f"{dot}{suffix}".lower()


def _is_picture(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return name.lower().endswith(tuple(IMAGE_SUFFIXES)) and not any(
        is_system_name(part) for part in parts if part != ".."
    )


def _named(item: SourceItem, prefix: str) -> SourceItem:
    name = item.name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return SourceItem(prefix + name, item.place, item.stamp, item.truth, item.extra)


def _distinct(items: Sequence[SourceItem]) -> tuple[SourceItem, ...]:
    """Return the items, those whose name is taken already with a number."""
    counts: dict[str, int] = {}
    distinct = []
    for item in items:
        counts[item.name] = counts.get(item.name, 0) + 1
        name = item.name if counts[item.name] == 1 else f"{item.name}#{counts[item.name]}"
        distinct.append(SourceItem(name, item.place, item.stamp, item.truth, item.extra))
    return tuple(distinct)
