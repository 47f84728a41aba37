"""What each image of a folder shows: by its class folder, by a table labels.csv, or by a sidecar text file.

- Class folders: ``DIR/<class>/…`` or ``DIR/train/<class>/…`` with ``DIR/val/<class>/…``: one class an image.
  Every folder is a class but hidden and system folders, and ``DIR/masks`` where it repeats the others' tree.
- ``DIR/labels.csv``: a column ``file`` (path within DIR), at will a column ``split``, and either ``label``
  (one class), ``labels`` (any number, with ; between), or a column of 0 and 1 for each label. A single such
  column makes a binary question: that label, or not.
- Sidecars: images lie directly in DIR or in DIR/train and DIR/val, each with a text file of the same stem
  beside it, one label a line; an empty file means none.
"""

from __future__ import annotations

from pathlib import Path

from pipelines.data.label_table import LABELS_TABLE, list_table
from pipelines.data.listing import (
    MASKS,
    SPLITS,
    FolderListing,
    LabelledFile,
    SkippedFile,
    check_printable,
    count_system_files,
    is_system_name,
    list_images,
    normalize_name,
)
from pipelines.errors import DataError


def list_folder(root: Path) -> FolderListing:
    """Find every image of a folder and its labels; raises DataError for a folder that cannot be trained
    on.
    """
    listing = _list_layout(root)
    listing.skipped += [
        SkippedFile(
            path.relative_to(root).as_posix(),
            f"{count} hidden files or files of a system were left out of it.",
        )
        for path, count in sorted(count_system_files(root).items())
    ]
    return listing


def _list_layout(root: Path) -> FolderListing:
    if (root / LABELS_TABLE).is_file():
        return list_table(root)
    divided = _is_divided(root)
    top = root / "train" if divided else root
    if any(path.with_suffix(".txt").is_file() for path in list_images(top, deep=False)):
        return _from_sidecars(root, divided=divided)
    return _from_folders(root, divided=divided)


def _is_divided(root: Path) -> bool:
    """Return whether train/ and val/ divide the images; a class may be called "train", too."""
    train = root / "train"
    if not train.is_dir() or (root / "val").is_dir():
        return train.is_dir()
    others = [name for name in _class_folders(root) if name != "train"]
    if others and not any(entry.is_dir() for entry in train.iterdir() if not is_system_name(entry.name)):
        return False
    raise DataError(f"The data folder {root} has train/ but no val/; add one, or give one folder of classes.")


# ---------------------------------------------------------------- class folders


def _from_folders(root: Path, *, divided: bool) -> FolderListing:
    classes = list(_class_folders(root / "train" if divided else root))
    if len(classes) < 2:
        have = f"only {classes[0]!r}" if classes else "none"
        raise DataError(
            f"A classifier needs at least two classes, each a folder of pictures; {root} has {have}."
        )
    listing = FolderListing("multiclass", classes, divided)
    for split in _parts(root, divided=divided):
        folders = _class_folders(root / split)
        if split:
            _same_classes(split, list(folders), classes)
        for label, name in enumerate(classes):
            listing.entries += [
                LabelledFile(path, split, (label,))
                for folder in folders[name]
                for path in list_images(folder)
            ]
        listing.skipped += [
            SkippedFile(
                path.relative_to(root).as_posix(), "It lies in no class folder and has no label file."
            )
            for path in list_images(root / split, deep=False)
        ]
    if divided:
        listing.skipped += _beside_splits(root)
    return listing


def _beside_splits(root: Path) -> list[SkippedFile]:
    """Name what lies beside train/, val/ and test/: it may have been meant as a class."""
    folders = [
        folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and not is_system_name(folder.name) and folder.name not in (*SPLITS, MASKS)
    ]
    return [
        SkippedFile(path.relative_to(root).as_posix(), "It lies beside train/, val/ and test/, not in them.")
        for folder in folders
        for path in list_images(folder)
    ]


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the folders of each class in the order of the classes' names, which are in NFC."""
    classes: dict[str, list[Path]] = {}
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not is_system_name(entry.name):
            classes.setdefault(normalize_name(entry.name), []).append(entry)
    if MASKS in classes and _repeats_tree(folder / MASKS, set(classes) - {MASKS}):
        del classes[MASKS]
    check_printable(list(classes))
    return dict(sorted(classes.items()))


def _repeats_tree(masks: Path, classes: set[str]) -> bool:
    """Return whether a folder has the classes' folders, as masks do, and no images of its own."""
    folders = {normalize_name(entry.name) for entry in masks.iterdir() if entry.is_dir()}
    return bool(folders & classes) and not any(list_images(masks, deep=False))


def _same_classes(split: str, other: list[str], classes: list[str]) -> None:
    if set(other) != set(classes):
        missing, extra = sorted(set(classes) - set(other)), sorted(set(other) - set(classes))
        raise DataError(
            f"{split}/ does not have the classes of train/: "
            f"missing {missing or 'none'}, unknown {extra or 'none'}."
        )


# ---------------------------------------------------------------- sidecars


def _from_sidecars(root: Path, *, divided: bool) -> FolderListing:
    named: list[tuple[Path, str, list[str]]] = []
    skipped: list[SkippedFile] = []
    for split in _parts(root, divided=divided):
        for path in list_images(root / split, deep=False):
            sidecar = path.with_suffix(".txt")
            try:
                lines = sidecar.read_text(encoding="utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError):
                inner = path.relative_to(root).as_posix()
                skipped.append(SkippedFile(inner, f"It has no readable label file {sidecar.name} beside it."))
                continue
            named.append((path, split, [normalize_name(line.strip()) for line in lines if line.strip()]))
    classes = sorted({name for _, _, names in named for name in names})
    if len(classes) < 2:
        raise DataError(
            f"The pictures of {root} lie in no class folders, and the label files beside them name "
            f"{classes or 'no label'}; a classifier needs at least two."
        )
    check_printable(classes)
    entries = [
        LabelledFile(path, split, tuple(sorted({classes.index(name) for name in names})))
        for path, split, names in named
    ]
    return FolderListing("multilabel", classes, divided, entries, skipped)


# ---------------------------------------------------------------- shared


def _parts(root: Path, *, divided: bool) -> list[str]:
    return [split for split in SPLITS if (root / split).is_dir()] if divided else [""]
