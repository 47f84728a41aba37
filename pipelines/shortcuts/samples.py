"""The pictures of a data set, to be searched for shortcuts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial

from models.errors import UnreadableImage
from models.images.decode import Image, decode_image
from pipelines.data.dataset import Dataset, Sample
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
    return spread(images, most)


def spread(images: Sequence[SearchImage], most: int) -> list[SearchImage]:
    """Return at most so many pictures: evenly chosen ones, as many of each class as of the others."""
    by_class: dict[int | None, list[SearchImage]] = defaultdict(list)
    for image in images:
        by_class[image.truth].append(image)
    share = max(1, most // max(1, len(by_class)))
    chosen: list[SearchImage] = []
    for group in by_class.values():
        step = max(1.0, len(group) / share)
        chosen += [group[int(n * step)] for n in range(min(share, len(group)))]
    return chosen


def decoded(read: Callable[[], bytes]) -> tuple[Image, bytes]:
    """Return a decoded picture and its file; raises LucidaError."""
    try:
        data = read()
    except OSError as error:
        raise UnreadableImage(f"The file cannot be read: {error.strerror}.") from error
    return decode_image(data), data


def _read_file(sample: Sample) -> tuple[Image, bytes]:
    return decoded(sample.path.read_bytes)
