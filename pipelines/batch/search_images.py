"""The pictures of a source, or of a batch that was explained, to be searched for shortcuts."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Sequence
from functools import partial

from models.bundle import Bundle
from models.images.decode import Image, Limits
from pipelines.batch.engine import JOB_NOTE
from pipelines.batch.index_page import true_class
from pipelines.batch.sinks import read_rows
from pipelines.batch.sources import Source, SourceItem, SourceOptions, open_source
from pipelines.batch.store import open_store
from pipelines.errors import DataError, StoreUnavailable
from pipelines.shortcuts.evidence import SearchImage
from pipelines.shortcuts.samples import decoded, spread


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
    return spread(images, most)


def _read_item(source: Source, item: SourceItem) -> tuple[Image, bytes]:
    return decoded(lambda: source.read(item, Limits()))
