"""Image files of a folder: by suffix or content, through links, without what systems leave behind; and how
they are listed with their labels.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from models.images.decode import IMAGE_SUFFIXES
from models.networks.scoring import Task
from pipelines.errors import DataError

SPLITS = ("train", "val", "test")
MASKS = "masks"
"""The folder of annotation, when it repeats the tree of the images; a class otherwise."""
_UNDECODED_SUFFIXES = (".heic", ".heif", ".avif", ".jxl", ".jp2")
"""Images to a person but not to our decoder: they are listed, so that each is named with the reason."""
_SYSTEM_FOLDERS = {
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "__macosx",
    "lost+found",
    "system volume information",
}
"""Thumbnails, bins and resource forks of network drives, Windows and macOS, in lower case."""
_SYSTEM_TREES = (Path("/proc"), Path("/sys"), Path("/dev"))
_SHARED_MEMORY = Path("/dev/shm")
"""A file system in memory, where people put pictures that must be read fast."""
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")


@dataclass(frozen=True, slots=True)
class SkippedFile:
    """A file that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class LabelledFile:
    """An image file with what it is said to show."""

    path: Path
    split: str
    """"train", "val", "test", or "" where the content decides."""
    labels: tuple[int, ...]


@dataclass
class FolderListing:
    """A labelled folder before any image was opened."""

    task: Task
    classes: list[str]
    divided: bool
    """Whether the folder says itself what is held out."""
    entries: list[LabelledFile] = field(default_factory=list)
    skipped: list[SkippedFile] = field(default_factory=list)


def list_images(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    """Yield the image files of a folder in the order of their names, with those of its folders.

    Links to files and to folders are followed; each real folder is entered once, so that loops end. Hidden
    and system folders and hidden files are left out. A link that leads nowhere is yielded when its name is
    an image's, for the reader to say so. Raises DataError for a folder that cannot be read, for the root of
    the file system, and for a folder of the system's own such as /proc, which has no end.
    """
    if _is_of_the_system(folder):
        raise DataError(f"{folder} is a folder of the system; name the one with the pictures.")
    yield from sorted(_walk(folder, deep, set()))


def count_system_files(folder: Path) -> Counter[Path]:
    """Count what :func:`list_images` leaves out: image files by the hidden or system folder they are in, or,
    where the file is hidden itself, by its folder.
    """
    counts: Counter[Path] = Counter()
    for path in folder.rglob("*"):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            for inner in reversed([path, *path.parents[: len(path.relative_to(folder).parts) - 1]]):
                if is_system_name(inner.name):
                    counts[path.parent if inner == path else inner] += 1
                    break
    return counts


def is_system_name(name: str) -> bool:
    """Return whether a file or folder of this name is hidden or left behind by a system."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def check_printable(classes: list[str]) -> None:
    """Raise DataError for a class whose name cannot be printed."""
    if odd := [name for name in classes if not name.isprintable()]:
        raise DataError(f"The class {odd[0]!r} has a name that cannot be printed; rename it.")


def normalize_name(name: str) -> str:
    """Return a name in Unicode's composed form (NFC), for macOS writes "é" as two characters, and without
    blanks around it, which nobody sees.
    """
    return unicodedata.normalize("NFC", name).strip()


def _walk(folder: Path, deep: bool, entered: set[tuple[int, int]]) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    if identity in entered:
        return
    entered.add(identity)
    try:
        # Links last, so that a folder is listed by its own name rather than by another.
        paths = sorted(folder.iterdir(), key=lambda path: (path.is_symlink(), path))
    except OSError as error:
        raise DataError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    for path in paths:
        if is_system_name(path.name):
            continue
        if path.is_dir():
            if deep and not (path.is_symlink() and _is_of_the_system(path)):
                yield from _walk(path, deep, entered)
        elif _is_image(path):
            yield path


def _is_of_the_system(folder: Path) -> bool:
    resolved = folder.resolve()
    if resolved.is_relative_to(_SHARED_MEMORY):
        return False
    return resolved == Path(resolved.anchor) or any(resolved.is_relative_to(part) for part in _SYSTEM_TREES)


def _is_image(path: Path) -> bool:
    if path.suffix.lower() in (*IMAGE_SUFFIXES, *_UNDECODED_SUFFIXES):
        return path.is_file() or path.is_symlink()
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError:
        return False
    return start.startswith(_SIGNATURES) or (start[:4] == b"RIFF" and start[8:] == b"WEBP")
