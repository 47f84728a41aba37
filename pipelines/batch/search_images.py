"""The pictures of a search for shortcuts: of a data set, of a source, or of a batch that was explained."""

from __future__ import annotations

import json
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from models.bundle import Bundle
from models.errors import UnreadableImage
from models.images.decode import Image, Limits, decode_image
from pipelines.batch.engine import JOB_NOTE
from pipelines.batch.index_page import true_class
from pipelines.batch.sinks import read_rows
from pipelines.batch.sources import Source, SourceItem, SourceOptions, open_source
from pipelines.batch.store import open_store
from pipelines.data.dataset import Dataset, Sample
from pipelines.errors import DataError, StoreUnavailable
from pipelines.evaluation.explanations import object_region
from pipelines.shortcuts.evidence import SearchImage


def dataset_images(data: Dataset, most: int) -> list[SearchImage]:
    """Return training and validation pictures of a data set, with the regions of their objects where they are
    known; those without exactly one class are left out.
    """
    images = [
        SearchImage(
            sample.name, partial(_read_file, sample), sample.label, partial(object_region, data, sample)
        )
        for split in ("train", "val")
        for sample in data.samples(split)
        if len(sample.labels) == 1
    ]
    return _spread(images, most)


def source_images(place: str, classes: Sequence[str], options: SourceOptions, most: int) -> list[SearchImage]:
    """Return the pictures of a source, each with the class that the source or its folder says, if any."""
    return _of_source(open_source(place, options), classes, {}, most)


def is_batch(place: str) -> bool:
    """Return whether a folder holds the results of an explain job."""
    try:
        return open_store(place).exists(JOB_NOTE)
    except (OSError, StoreUnavailable):
        return False


def batch_images(place: str, bundle: Bundle, options: SourceOptions, most: int) -> list[SearchImage]:
    """Return the pictures of a batch, from where it was made, with the true classes of its rows.

    Raises DataError for a batch of another bundle, or whose source is not noted or gone.
    """
    note = json.loads(open_store(place).read(JOB_NOTE))
    if note.get("model_digest") != bundle.provenance.digest:
        raise DataError(
            f"The batch {place} was explained by the bundle {str(note.get('model_digest'))[:12]}, not by "
            f"{bundle.provenance.digest[:12]}."
        )
    if "source" not in note:
        raise DataError(f"The batch {place} does not say where its pictures are; name them instead of it.")
    truths = {row["path"]: row["truth"] for row in read_rows(place, only=("path", "truth", "status"))}
    source = open_source(note["source"], options)
    return _of_source(source, bundle.model.classes, truths, most)


def _of_source(
    source: Source, classes: Sequence[str], truths: dict[str, str | None], most: int
) -> list[SearchImage]:
    by_name = {unicodedata.normalize("NFC", name): name for name in classes}

    def label(item: SourceItem) -> int | None:
        name = truths.get(item.name) or item.truth or true_class(item.name, by_name)
        return classes.index(name) if name in classes else None

    chosen = [item for item in source.items if not truths or item.name in truths]
    images = [SearchImage(item.name, partial(_read_item, source, item), label(item)) for item in chosen]
    return _spread(images, most)


def _spread(images: Sequence[SearchImage], most: int) -> list[SearchImage]:
    """Return at most so many pictures: evenly chosen ones, as many of each class as of the others."""
    by_class: dict[int | None, list[SearchImage]] = defaultdict(list)
    for image in images:
        by_class[image.truth].append(image)
    share = max(1, most // max(1, len(by_class)))
    spread: list[SearchImage] = []
    for group in by_class.values():
        step = max(1.0, len(group) / share)
        spread += [group[int(n * step)] for n in range(min(share, len(group)))]
    return spread


def _read_file(sample: Sample) -> tuple[Image, bytes]:
    return _decoded(sample.path.read_bytes)


def _read_item(source: Source, item: SourceItem) -> tuple[Image, bytes]:
    return _decoded(lambda: source.read(item, Limits()))


def _decoded(read: Callable[[], bytes]) -> tuple[Image, bytes]:
    try:
        data = read()
    except OSError as error:
        raise UnreadableImage(f"The file cannot be read: {error.strerror}.") from error
    return decode_image(data), data
