"""An image folder as a data set: two layouts, split by content where there is no split, broken files named.

Layouts: ``DIR/train/<class>/…`` with ``DIR/val/<class>/…`` (and ``DIR/test/<class>/…`` if there is one), or
one folder ``DIR/<class>/…`` whose pictures are split by the hash of their bytes, so that the same picture
lands on the same side on every machine, under every name and however the folder grows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from models import images
from models.errors import DataError, ImageError

SPLITS = ("train", "val", "test")
_NOT_CLASSES = {"masks"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One readable picture."""

    path: Path
    name: str
    """Path within the data set, with forward slashes."""
    label: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """Samples by split; the digest names exactly this content, labels and split."""

    name: str
    root: Path
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    skipped: list[Skipped]
    shared: list[tuple[str, str]]
    """(train name, held-out name) of pictures that are on both sides: what is measured on them is no
    evidence.
    """

    @property
    def digest(self) -> str:
        """SHA-256 over split, class and content of every sample."""
        lines = [
            f"{split}\t{self.classes[sample.label]}\t{sample.sha256}"
            for split in SPLITS
            for sample in self.samples(split)
        ]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def samples(self, split: str) -> list[Sample]:
        """The samples of "train", "val" or "test"."""
        found: list[Sample] = getattr(self, split)
        return found

    def mask(self, sample: Sample) -> Path | None:
        """The object mask that lies beside the set for this sample, if there is one."""
        path = (self.root / "masks" / sample.name).with_suffix(".png")
        return path if path.is_file() else None

    def summary(self) -> dict[str, object]:
        """Counts and digest, for a manifest."""
        return {
            "name": self.name,
            "digest": self.digest,
            **{split: len(self.samples(split)) for split in SPLITS},
            "skipped": len(self.skipped),
        }


def scan(
    root: Path, *, val_share: float = 0.25, progress: Callable[[int, int], None] | None = None
) -> Dataset:
    """Read every picture once, and sort it by class and split.

    Files that are no readable picture are listed in ``skipped``. Raises DataError for a folder that cannot be
    trained on: missing, empty, one class only, a class without pictures on one side, train and val with other
    classes.
    """
    name, root = root.absolute().name, root.resolve()
    if not root.is_dir():
        raise DataError(f"The data folder {root} does not exist.")
    divided = (root / "train").is_dir()
    if divided and not (root / "val").is_dir():
        raise DataError(
            f"The data folder {root} has train/ but no val/; add one, or give one folder of classes."
        )
    classes = _classes(root / "train" if divided else root)
    if divided:
        _same_classes(root, classes)
    parts = [split for split in SPLITS if (root / split).is_dir()] if divided else [""]
    files = [(part, label, path) for part in parts for label, path in _files(root / part, classes)]
    found: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    skipped: list[Skipped] = []
    for done, (part, label, path) in enumerate(files, start=1):
        inner = path.relative_to(root).as_posix()
        try:
            inner.encode()
        except UnicodeEncodeError:
            shown = inner.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            skipped.append(Skipped(shown, "The file's name is not valid UTF-8; rename it."))
            continue
        try:
            digest = images.read(path).sha256
        except ImageError as error:
            skipped.append(Skipped(inner, str(error)))
        else:
            split = part or ("val" if int(digest[:8], 16) / 2**32 < val_share else "train")
            found[split].append(Sample(path=path, name=inner, label=label, sha256=digest))
        if progress:
            progress(done, len(files))
    _each_class_on_both_sides(found, classes, skipped, divided=divided)
    return Dataset(name=name, root=root, classes=classes, skipped=skipped, shared=_shared(found), **found)


def _classes(folder: Path) -> list[str]:
    found = [
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not entry.name.startswith((".", "_")) and entry.name not in _NOT_CLASSES
    ]
    classes = sorted(found)
    if odd := [name for name in classes if not name.isprintable()]:
        raise DataError(f"The class folder {odd[0]!r} has a name that cannot be printed; rename it.")
    if len(classes) < 2:
        have = f"only {classes[0]!r}" if classes else "none"
        raise DataError(
            f"A classifier needs at least two classes, each a folder of pictures; {folder} has {have}."
        )
    return classes


def _same_classes(root: Path, classes: list[str]) -> None:
    for split in ("val", "test"):
        if (root / split).is_dir() and set(other := _classes(root / split)) != set(classes):
            missing, extra = sorted(set(classes) - set(other)), sorted(set(other) - set(classes))
            raise DataError(
                f"{split}/ does not have the classes of train/: "
                f"missing {missing or 'none'}, unknown {extra or 'none'}."
            )


def _files(folder: Path, classes: list[str]) -> Iterator[tuple[int, Path]]:
    for label, name in enumerate(classes):
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() in images.SUFFIXES and path.is_file() and not path.name.startswith("."):
                yield label, path


def _each_class_on_both_sides(
    found: dict[str, list[Sample]], classes: list[str], skipped: list[Skipped], *, divided: bool
) -> None:
    for split in ("train", "val"):
        counts = Counter(sample.label for sample in found[split])
        if empty := [name for label, name in enumerate(classes) if not counts[label]]:
            broken = (
                f" ({len(skipped)} files could not be read, such as {skipped[0].name})" if skipped else ""
            )
            advice = "" if divided else "; with so few pictures, make train/ and val/ folders yourself"
            raise DataError(
                f"The {split} split has no readable picture of {', '.join(empty)}{broken}{advice}."
            )


def _shared(found: dict[str, list[Sample]]) -> list[tuple[str, str]]:
    trained = {sample.sha256: sample.name for sample in found["train"]}
    held_out = [sample for split in ("val", "test") for sample in found[split]]
    return [(trained[sample.sha256], sample.name) for sample in held_out if sample.sha256 in trained]
