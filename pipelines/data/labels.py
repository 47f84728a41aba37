"""What each image of a folder shows: by its class folder, by a table labels.csv, or by a sidecar text file.

- Class folders: ``DIR/<class>/…`` or ``DIR/train/<class>/…`` with ``DIR/val/<class>/…``: one class an image.
- ``DIR/labels.csv``: a column ``file`` (path within DIR), at will a column ``split``, and either ``label``
  (one class), ``labels`` (any number, with ; between), or a column of 0 and 1 for each label. A single such
  column makes a binary question: that label, or not.
- Sidecars: images lie directly in DIR or in DIR/train and DIR/val, each with a text file of the same stem
  beside it, one label a line; an empty file means none.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from models.images.decode import IMAGE_SUFFIXES
from models.networks.scoring import Task
from pipelines.errors import DataError

SPLITS = ("train", "val", "test")
LABELS_TABLE = "labels.csv"
_NOT_CLASSES = {"masks"}


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


def list_folder(root: Path) -> FolderListing:
    """Find every image of a folder and its labels; raises DataError for a folder that cannot be trained
    on.
    """
    if (root / LABELS_TABLE).is_file():
        return _from_table(root)
    divided = (root / "train").is_dir()
    if divided and not (root / "val").is_dir():
        raise DataError(
            f"The data folder {root} has train/ but no val/; add one, or give one folder of classes."
        )
    top = root / "train" if divided else root
    if any(path.with_suffix(".txt").is_file() for path in _list_images(top, deep=False)):
        return _from_sidecars(root, divided=divided)
    return _from_folders(root, divided=divided)


# ---------------------------------------------------------------- class folders


def _from_folders(root: Path, *, divided: bool) -> FolderListing:
    classes = _class_folders(root / "train" if divided else root)
    if len(classes) < 2:
        have = f"only {classes[0]!r}" if classes else "none"
        raise DataError(
            f"A classifier needs at least two classes, each a folder of pictures; {root} has {have}."
        )
    listing = FolderListing("multiclass", classes, divided)
    for split in _parts(root, divided=divided):
        if split:
            _same_classes(root, split, classes)
        for label, name in enumerate(classes):
            listing.entries += [
                LabelledFile(path, split, (label,)) for path in _list_images(root / split / name)
            ]
        listing.skipped += [
            SkippedFile(
                path.relative_to(root).as_posix(), "It lies in no class folder and has no label file."
            )
            for path in _list_images(root / split, deep=False)
        ]
    return listing


def _class_folders(folder: Path) -> list[str]:
    classes = sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith((".", "_")) and entry.name not in _NOT_CLASSES
    )
    _printable(classes)
    return classes


def _same_classes(root: Path, split: str, classes: list[str]) -> None:
    if set(other := _class_folders(root / split)) != set(classes):
        missing, extra = sorted(set(classes) - set(other)), sorted(set(other) - set(classes))
        raise DataError(
            f"{split}/ does not have the classes of train/: "
            f"missing {missing or 'none'}, unknown {extra or 'none'}."
        )


# ---------------------------------------------------------------- labels.csv


def _from_table(root: Path) -> FolderListing:
    columns, rows = _read_table(root / LABELS_TABLE)
    own = [name for name in columns if name not in ("file", "split")]
    if own == ["label"] or own == ["labels"]:
        several = own == ["labels"]
        named = [_named(row[own[0]], several=several, line=line) for line, row in rows]
        classes = sorted({name for names in named for name in names})
        task: Task = "multilabel" if several else "multiclass"
        labels = [tuple(sorted(classes.index(name) for name in names)) for names in named]
    elif {"label", "labels"} & set(own):
        raise DataError(
            f"{LABELS_TABLE} has the columns {columns}; "
            "beside label or labels there may only be file and split."
        )
    else:
        flags = [[_flag(row[name], name, line) for name in own] for line, row in rows]
        binary = len(own) == 1
        task = "binary" if binary else "multilabel"
        classes = [f"not {own[0]}", own[0]] if binary else own
        labels = [
            (int(row_flags[0]),) if binary else tuple(i for i, holds in enumerate(row_flags) if holds)
            for row_flags in flags
        ]
    if len(classes) < 2:
        raise DataError(f"{LABELS_TABLE} names {classes or 'no class'}; a classifier needs at least two.")
    _printable(classes)
    entries, skipped = _table_entries(root, rows, labels)
    divided = any(entry.split for entry in entries)
    if divided and (undivided := [entry.path.name for entry in entries if not entry.split]):
        raise DataError(
            f"{LABELS_TABLE} gives a split to some files but none to {undivided[0]!r}; give all or none."
        )
    return FolderListing(task, classes, divided, entries, skipped)


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return column names, and each row with its line number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, restkey="")
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            rows = [(reader.line_num, row) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path.name} cannot be read as a UTF-8 table: {error}.") from error
    if "file" not in columns or len(columns) < 2 or len(set(columns)) != len(columns) or "" in columns:
        raise DataError(
            f"{path.name} has the columns {columns}; it needs file, and label, labels or one column a label."
        )
    if ragged := [line for line, row in rows if None in row.values() or "" in row]:
        raise DataError(f"{path.name}, line {ragged[0]}: the row does not have {len(columns)} fields.")
    return columns, rows


def _named(text: str, *, several: bool, line: int) -> list[str]:
    names = [name.strip() for name in text.split(";")] if several else [text.strip()]
    names = [name for name in names if name]
    if not several and not names:
        raise DataError(f"{LABELS_TABLE}, line {line}: the label is empty.")
    return list(dict.fromkeys(names))


def _flag(text: str, column: str, line: int) -> bool:
    if text.strip() not in ("0", "1"):
        raise DataError(f"{LABELS_TABLE}, line {line}: {column} is {text!r}; it must be 0 or 1.")
    return text.strip() == "1"


def _table_entries(
    root: Path, rows: list[tuple[int, dict[str, str]]], labels: list[tuple[int, ...]]
) -> tuple[list[LabelledFile], list[SkippedFile]]:
    entries: list[LabelledFile] = []
    skipped: list[SkippedFile] = []
    seen: set[Path] = set()
    for (line, row), file_labels in zip(rows, labels, strict=True):
        name = row["file"].strip()
        # Not resolved: an image may be a link to where a data store keeps it, but its name may not lead
        # outside.
        path = Path(os.path.normpath(root / name))
        first = Path(name).parts[0] if Path(name).parts else ""
        split = row.get("split", "").strip() or (first if first in SPLITS else "")
        if split and split not in SPLITS:
            raise DataError(
                f"{LABELS_TABLE}, line {line}: the split {split!r} is none of {', '.join(SPLITS)}."
            )
        if not path.is_relative_to(root):
            raise DataError(f"{LABELS_TABLE}, line {line}: the file {name!r} lies outside the data folder.")
        if path in seen:
            raise DataError(f"{LABELS_TABLE}, line {line}: the file {name!r} is named twice.")
        seen.add(path)
        if path.is_file():
            entries.append(LabelledFile(path, split, file_labels))
        else:
            skipped.append(SkippedFile(name, f"{LABELS_TABLE} names it, but there is no such file."))
    unnamed = [path for path in _list_images(root) if path not in seen and not _is_mask(root, path)]
    skipped += [
        SkippedFile(path.relative_to(root).as_posix(), f"{LABELS_TABLE} has no row for it.")
        for path in unnamed
    ]
    return entries, skipped


# ---------------------------------------------------------------- sidecars


def _from_sidecars(root: Path, *, divided: bool) -> FolderListing:
    named: list[tuple[Path, str, list[str]]] = []
    skipped: list[SkippedFile] = []
    for split in _parts(root, divided=divided):
        for path in _list_images(root / split, deep=False):
            sidecar = path.with_suffix(".txt")
            try:
                lines = sidecar.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError):
                inner = path.relative_to(root).as_posix()
                skipped.append(SkippedFile(inner, f"It has no readable label file {sidecar.name} beside it."))
                continue
            named.append((path, split, [line.strip() for line in lines if line.strip()]))
    classes = sorted({name for _, _, names in named for name in names})
    if len(classes) < 2:
        raise DataError(
            f"The pictures of {root} lie in no class folders, and the label files beside them name "
            f"{classes or 'no label'}; a classifier needs at least two."
        )
    _printable(classes)
    entries = [
        LabelledFile(path, split, tuple(sorted({classes.index(name) for name in names})))
        for path, split, names in named
    ]
    return FolderListing("multilabel", classes, divided, entries, skipped)


# ---------------------------------------------------------------- shared


def _parts(root: Path, *, divided: bool) -> list[str]:
    return [split for split in SPLITS if (root / split).is_dir()] if divided else [""]


def _list_images(folder: Path, *, deep: bool = True) -> Iterator[Path]:
    for path in sorted(folder.rglob("*") if deep else folder.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not path.name.startswith("."):
            yield path


def _is_mask(root: Path, path: Path) -> bool:
    return path.relative_to(root).parts[0] in _NOT_CLASSES


def _printable(classes: list[str]) -> None:
    if odd := [name for name in classes if not name.isprintable()]:
        raise DataError(f"The class {odd[0]!r} has a name that cannot be printed; rename it.")
