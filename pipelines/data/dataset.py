"""A labelled folder as a data set: every image read once, split by content where the folder does not say,
broken files named.

Where there is no split, an image's side is chosen by the hash of its bytes, so that the same image lands
on the same side on every machine, under every name and however the folder grows.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from models.errors import ImageError
from models.images.decode import read_image
from models.networks.scoring import Task
from models.progress import Progress, no_progress
from pipelines.data.boxes import Box, read_boxes
from pipelines.data.labels import list_folder
from pipelines.data.listing import MASKS, SPLITS, LabelledFile, SkippedFile
from pipelines.errors import DataError


@dataclass(frozen=True, slots=True)
class Sample:
    """A readable image."""

    path: Path
    name: str
    """Path within the data set, with forward slashes."""
    labels: tuple[int, ...]
    """Indices of the classes that hold: exactly one, unless the task is multilabel."""
    sha256: str
    width: int
    height: int
    """Pixels of the upright image."""

    @property
    def label(self) -> int:
        """The class of an image that has exactly one."""
        (only,) = self.labels
        return only


@dataclass(frozen=True)
class Dataset:
    """Samples by split; the digest names exactly this content, labels and split."""

    name: str
    root: Path
    task: Task
    classes: list[str]
    train: list[Sample]
    val: list[Sample]
    test: list[Sample]
    skipped: list[SkippedFile]
    shared: list[tuple[str, str]]
    """(train name, held-out name) of images that are on both sides: what is measured on them is no
    evidence.
    """
    conflicting: list[tuple[str, str]] = field(default_factory=list)
    """Names of one split whose content is the same and whose labels are not: one of them is wrong."""
    boxes: Mapping[str, tuple[Box, ...]] = field(default_factory=dict)
    """By the name of a sample: where its objects are, for samples that boxes.csv names."""

    @property
    def digest(self) -> str:
        """SHA-256 over split, class and content of every sample."""
        lines = [
            f"{split}\t{';'.join(self.classes[label] for label in sample.labels)}\t{sample.sha256}"
            for split in SPLITS
            for sample in self.samples(split)
        ]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def samples(self, split: str) -> list[Sample]:
        """Return the samples of "train", "val" or "test"."""
        samples: list[Sample] = getattr(self, split)
        return samples

    def summary(self) -> dict[str, object]:
        """Return counts and digest, for a manifest."""
        return {
            "name": self.name,
            "digest": self.digest,
            "task": self.task,
            **{split: len(self.samples(split)) for split in SPLITS},
            "skipped": len(self.skipped),
        }

    def describe(self) -> dict[str, object]:
        """Return the summary with all that is odd, by name."""
        return {
            **self.summary(),
            "classes": self.classes,
            "skipped_files": [{"name": item.name, "reason": item.reason} for item in self.skipped],
            "pictures_on_both_sides": [list(pair) for pair in self.shared],
            "pictures_with_two_labels": [list(pair) for pair in self.conflicting],
        }


def scan_folder(root: Path, *, val_share: float = 0.25, progress: Progress = no_progress) -> Dataset:
    """Read every image once, and sort it by class and split.

    Layouts are those of :mod:`pipelines.data.labels`. Files that are no readable image are listed in
    ``skipped``. Raises DataError for a folder that cannot be trained on: missing, empty, one class only, a
    class without images on one side, train and val with other classes.
    """
    name, root = root.absolute().name, root.resolve()
    if not root.is_dir():
        raise DataError(f"The data folder {root} does not exist.")
    listed = list_folder(root)
    by_split: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    skipped = list(listed.skipped)
    for done, entry in enumerate(listed.entries, start=1):
        inner = entry.path.relative_to(root).as_posix()
        read = _read(entry, inner, val_share)
        if isinstance(read, SkippedFile):
            skipped.append(read)
        else:
            split, sample = read
            by_split[split].append(sample)
        progress("reading pictures", done, len(listed.entries))
    names = [sample.name for samples in by_split.values() for sample in samples]
    boxes, unused = read_boxes(root, names)
    skipped += unused
    _check_classes_in_splits(by_split, listed.classes, skipped, divided=listed.divided)
    return Dataset(
        name=name,
        root=root,
        task=listed.task,
        classes=listed.classes,
        skipped=skipped,
        shared=_shared(by_split),
        conflicting=_conflicting(by_split),
        boxes=boxes,
        **by_split,
    )


def with_task(data: Dataset, task: str) -> Dataset:
    """Return the data set as an answer to another kind of question; "auto" leaves it as its labels are.

    Raises DataError where the labels do not allow it.
    """
    if task in ("auto", data.task):
        return data
    if task == "binary" and len(data.classes) != 2:
        raise DataError(f"task is 'binary', but the data has {len(data.classes)} classes: {data.classes}.")
    samples = [sample for split in SPLITS for sample in data.samples(split)]
    if task != "multilabel" and (odd := [sample for sample in samples if len(sample.labels) != 1]):
        raise DataError(
            f"task is {task!r}, but {odd[0].name} has {len(odd[0].labels)} labels; it needs exactly one each."
        )
    if task == "multilabel" and data.task == "binary":
        raise DataError("task is 'multilabel', but the data answers one yes-or-no question; use 'binary'.")
    return replace(data, task=task)  # type: ignore[arg-type]


def has_regions(data: Dataset) -> bool:
    """Return whether a data set says where its objects are, by boxes or masks."""
    return bool(data.boxes) or (data.root / MASKS).is_dir()


def match_classes(data: Dataset, classes: Sequence[str]) -> Dataset:
    """Return a data set with its classes in a model's order; raises DataError unless they are the same."""
    if set(data.classes) != set(classes):
        odd = sorted(set(data.classes) ^ set(classes))
        raise DataError(
            f"The data has {len(data.classes)} classes and the model {len(classes)}; they differ in "
            f"{', '.join(odd[:5])}{' …' if len(odd) > 5 else ''}."
        )
    places = {number: list(classes).index(label) for number, label in enumerate(data.classes)}
    renumbered = {
        split: [
            replace(sample, labels=tuple(sorted(places[label] for label in sample.labels)))
            for sample in data.samples(split)
        ]
        for split in SPLITS
    }
    return replace(data, classes=list(classes), **renumbered)  # type: ignore[arg-type]


def _read(entry: LabelledFile, inner: str, val_share: float) -> tuple[str, Sample] | SkippedFile:
    """Return (split, sample), or why there is none."""
    try:
        inner.encode()
    except UnicodeEncodeError:
        readable = inner.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
        return SkippedFile(readable, "The file's name is not valid UTF-8; rename it.")
    try:
        image = read_image(entry.path)
    except ImageError as error:
        return SkippedFile(inner, str(error))
    split = entry.split or ("val" if int(image.sha256[:8], 16) / 2**32 < val_share else "train")
    return split, Sample(entry.path, inner, entry.labels, image.sha256, image.width, image.height)


def _check_classes_in_splits(
    by_split: dict[str, list[Sample]], classes: list[str], skipped: list[SkippedFile], *, divided: bool
) -> None:
    for split in ("train", "val"):
        counts = Counter(label for sample in by_split[split] for label in sample.labels)
        if empty := [name for label, name in enumerate(classes) if not counts[label]]:
            broken = f" ({len(skipped)} files were left out, such as {skipped[0].name})" if skipped else ""
            advice = "" if divided else "; with so few pictures, make train/ and val/ folders yourself"
            raise DataError(
                f"The {split} split has no readable picture of {', '.join(empty)}{broken}{advice}."
            )


def _shared(by_split: dict[str, list[Sample]]) -> list[tuple[str, str]]:
    trained = {sample.sha256: sample.name for sample in by_split["train"]}
    held_out = [sample for split in ("val", "test") for sample in by_split[split]]
    return [(trained[sample.sha256], sample.name) for sample in held_out if sample.sha256 in trained]


def _conflicting(by_split: dict[str, list[Sample]]) -> list[tuple[str, str]]:
    pairs = []
    for samples in by_split.values():
        first: dict[str, Sample] = {}
        for sample in samples:
            other = first.setdefault(sample.sha256, sample)
            if other.labels != sample.labels:
                pairs.append((other.name, sample.name))
    return pairs
