"""A bundle that lies in an object store, fetched to be checked and loaded as any other."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from pipelines.batch.store import open_store
from pipelines.errors import DataError

_MOST_FILES, _MOST_BYTES = 2_000, 10_000_000_000


def fetch_remote_bundle(address: str, folder: Path) -> Path:
    """Fetch the files below an address into a new folder, and return it; :func:`models.bundle.load_bundle`
    holds them against their digests.

    Raises DataError for an address without files, with too many, or with names that lead elsewhere;
    StoreUnavailable; ConfigError for an address of another kind.
    """
    store = open_store(address)
    files = list(store.files())
    if not files:
        raise DataError(f"{address} has no files; name the folder of a bundle.")
    if len(files) > _MOST_FILES or sum(file.stamp[0] for file in files) > _MOST_BYTES:
        raise DataError(f"{address} has {len(files):,} files, which is no bundle; name its own folder.")
    for file in files:
        path = PurePosixPath(file.name)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{address} has a file {file.name!r}, which leads out of it.")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(store.read(file.name))
    return folder
