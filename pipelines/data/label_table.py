"""Labels of images from a table, labels.csv; its columns are those of :mod:`pipelines.data.labels`."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

from models.networks.scoring import Task
from pipelines.data.listing import (
    MASKS,
    SPLITS,
    FolderListing,
    LabelledFile,
    SkippedFile,
    check_printable,
    list_images,
    normalize_name,
)
from pipelines.errors import DataError

LABELS_TABLE = "labels.csv"


def list_table(root: Path) -> FolderListing:
    """List the images that a folder's table names; raises DataError where the table is wrong."""
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
    check_printable(classes)
    entries, skipped = _table_entries(root, rows, labels)
    divided = any(entry.split for entry in entries)
    if divided and (undivided := [entry.path.name for entry in entries if not entry.split]):
        raise DataError(
            f"{LABELS_TABLE} gives a split to some files but none to {undivided[0]!r}; give all or none."
        )
    return FolderListing(task, classes, divided, entries, skipped)


def _file_finder(root: Path) -> Callable[[Path], Path]:
    """Return a function that gives the file a table means: the path itself, the file whose name is composed
    of other characters (NFC, NFD), or the only one that the path names but for its suffix.
    """

    @cache
    def by_name() -> dict[str, list[Path]]:
        files: dict[str, list[Path]] = {}
        for path in list_images(root):
            for key in {path, path.with_suffix("")}:
                files.setdefault(normalize_name(str(key)), []).append(path)
        return files

    def find(path: Path) -> Path:
        if path.is_file():
            return path
        matches = by_name().get(normalize_name(str(path)), [])
        return matches[0] if len(matches) == 1 else path

    return find


def _read_table(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Return column names, and each row with its line number."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, strict=True, restkey="")
            columns = [normalize_name(name.strip()) for name in reader.fieldnames or []]
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
    names = [normalize_name(name.strip()) for name in (text.split(";") if several else [text])]
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
    find = _file_finder(root)
    for (line, row), file_labels in zip(rows, labels, strict=True):
        name = row["file"].strip()
        if "\\" in name and not (root / name).is_file():
            name = name.replace("\\", "/")
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
        path = find(path)
        if path in seen:
            raise DataError(f"{LABELS_TABLE}, line {line}: the file {name!r} is named twice.")
        seen.add(path)
        if path.is_file():
            entries.append(LabelledFile(path, split, file_labels))
        else:
            skipped.append(SkippedFile(name, f"{LABELS_TABLE} names it, but there is no such file."))
    unnamed = [
        path for path in list_images(root) if path not in seen and path.relative_to(root).parts[0] != MASKS
    ]
    skipped += [
        SkippedFile(path.relative_to(root).as_posix(), f"{LABELS_TABLE} has no row for it.")
        for path in unnamed
    ]
    return entries, skipped
