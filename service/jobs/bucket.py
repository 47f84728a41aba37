"""An object store as the jobs need it: small objects, and writes that fail where another was first."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, PreconditionError
from obstore.store import ObjectStore, from_url

from service.jobs.store import JobStoreUnavailable

_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AZURE_STORAGE_ENDPOINT", "GOOGLE_BASE_URL")
_REQUEST_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Entry:
    """An object of a listing."""

    key: str
    size: int
    """Bytes."""
    modified: datetime
    """By the store's clock."""


class Bucket:
    """All objects below a URL (s3://, gs://, az://), with the credentials of that store's own variables.

    A request is repeated for at most ``patience`` seconds; after them every method raises
    JobStoreUnavailable.
    """

    def __init__(self, url: str, *, patience: float) -> None:
        self.url = url
        with self._translated():
            self._store: ObjectStore = from_url(
                url,
                client_options={
                    "allow_http": _over_http(os.environ),
                    "timeout": timedelta(seconds=_REQUEST_SECONDS),
                },
                retry_config={"max_retries": 20, "retry_timeout": timedelta(seconds=patience)},
            )

    def read(self, key: str) -> bytes | None:
        """Return an object's content; None where there is none."""
        content, _ = self.read_with_tag(key)
        return content

    def read_with_tag(self, key: str) -> tuple[bytes | None, str | None]:
        """Return an object's content with the tag of this version of it."""
        with self._translated():
            try:
                result = obstore.get(self._store, key)
                return bytes(result.bytes()), result.meta["e_tag"]
            except FileNotFoundError:
                return None, None

    def write(self, key: str, content: bytes) -> None:
        """Write an object over whatever there is."""
        with self._translated():
            obstore.put(self._store, key, content)

    def create(self, key: str, content: bytes) -> bool:
        """Write a new object; return False where another content has that key already."""
        with self._translated():
            try:
                obstore.put(self._store, key, content, mode="create")
                return True
            except AlreadyExistsError:
                # It may be our own: an answer that was lost on its way makes the client ask again.
                return self.read(key) == content

    def replace(self, key: str, content: bytes, tag: str | None) -> bool:
        """Write over the version of that tag; return False where there is another version by now."""
        with self._translated():
            try:
                obstore.put(self._store, key, content, mode={"e_tag": tag})
                return True
            except (PreconditionError, FileNotFoundError):
                return self.read(key) == content

    def entries(self, folder: str) -> list[Entry]:
        """List all objects below a folder, however deep."""
        with self._translated():
            return [
                Entry(meta["path"], meta["size"], meta["last_modified"])
                for page in obstore.list(self._store, folder)
                for meta in page
            ]

    def names(self, folder: str) -> set[str]:
        """List the names of the objects and of the folders right below a folder."""
        with self._translated():
            listing = obstore.list_with_delimiter(self._store, folder)
        keys = [*listing["common_prefixes"], *(meta["path"] for meta in listing["objects"])]
        return {key.rpartition("/")[2] for key in keys}

    def delete(self, keys: Sequence[str]) -> None:
        """Delete objects; those that are gone already are no error."""
        with self._translated():
            try:
                obstore.delete(self._store, [*keys])
            except FileNotFoundError:
                # Stores without deletion by the list stop at the first that is gone.
                for key in keys:
                    self._delete_one(key)

    def _delete_one(self, key: str) -> None:
        try:
            obstore.delete(self._store, key)
        except FileNotFoundError:
            return

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (BaseError, OSError, ValueError) as error:
            reason = " ".join(str(error).partition("\n\nDebug source")[0].split())
            raise JobStoreUnavailable(f"The store of the jobs at {self.url} fails: {reason}") from error


def _over_http(environment: Mapping[str, str]) -> bool:
    """Return whether the operator named an address without TLS, as that of a store in the same cluster."""
    return any(environment.get(name, "").startswith("http://") for name in _ENDPOINTS)
