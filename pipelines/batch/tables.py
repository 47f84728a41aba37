"""Sources that are written down: lists of paths, and tables (CSV, JSON lines, Parquet) with a column of paths
or of encoded pictures, as they come from a data warehouse or the Hugging Face hub.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.json as arrow_json
import pyarrow.parquet as pq

from models.errors import UnreadableImage
from models.images.decode import Limits
from pipelines.batch.sources import FileSource, Source, SourceItem, SourceOptions, check_size
from pipelines.batch.store import LocalStore, Store, open_parent, scheme_of
from pipelines.errors import DataError

TABLE_SUFFIXES = (".csv", ".jsonl", ".parquet")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""What a folder of the Hugging Face hub lists its pictures in."""
_USUAL_COLUMNS = ("path", "file_name", "image", "filename", "file", "url", "picture", "bytes")


def find_table(folder: Path) -> Path | None:
    """Return the table that a folder lists its pictures in, as folders of the Hugging Face hub do."""
    if not folder.is_dir():
        return None
    return next((folder / name for name in _METADATA if (folder / name).is_file()), None)


def open_list(place: str, options: SourceOptions) -> Source:
    """Return the source of a text file with a path or an address on each line, relative to the list."""
    store, name = open_parent(place)
    lines = _text(store, name, place).splitlines()
    paths = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    if not paths:
        raise DataError(f"The list {place} names no picture.")
    return FileSource(place, store, _items(paths, store, [{}] * len(paths), None), options.allow_http)


def open_table(place: str, options: SourceOptions) -> Source:
    """Return the source of a table, a picture a row; other columns are kept with it.

    Raises DataError for a table that cannot be read, is empty, or lacks the column.
    """
    store, name = open_parent(place)
    try:
        if name.endswith(".parquet"):
            return _open_parquet(place, store, name, options)
        table = _read_text_table(store, name)
    except (pa.ArrowInvalid, OSError, UnicodeDecodeError) as error:
        raise DataError(f"The table {place} cannot be read: {' '.join(str(error).split())[:200]}") from error
    column = _column(place, table.column_names, options)
    rows = table.to_pylist()
    paths = [_path(row[column]) for row in rows]
    return _file_source(place, store, paths, rows, column, options)


@dataclass(frozen=True)
class BytesSource:
    """A source of encoded pictures in a column of a Parquet file; one row group is held at a time."""

    where: str
    store: Store
    file: str
    column: str
    items: tuple[SourceItem, ...]
    _held: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def read(self, item: SourceItem, limits: Limits) -> bytes:
        """Return the bytes of a row."""
        group, row = item.place.split(":")
        if self._held.get("group") != group:
            with self.store.open(self.file) as file:
                table = pq.ParquetFile(file).read_row_group(int(group), columns=[self.column])
            self._held.update(group=group, values=table.column(0))
        value = self._held["values"][int(row)].as_py()
        data = value.get("bytes") if isinstance(value, Mapping) else value
        if not data:
            raise UnreadableImage("The row has no picture.")
        check_size(len(data), limits)
        return bytes(data)

    def __getstate__(self) -> dict[str, Any]:
        """Leave what is held behind."""
        return {**self.__dict__, "_held": {}}


def _open_parquet(place: str, store: Store, name: str, options: SourceOptions) -> Source:
    with store.open(name) as file:
        parquet = pq.ParquetFile(file)
        schema = parquet.schema_arrow
        column = _column(place, schema.names, options)
        kind = schema.field(column).type
        holds_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_struct(kind)
        others = [item for item in schema.names if item != column or not holds_bytes]
        rows = parquet.read(columns=others).to_pylist()
        if not holds_bytes:
            return _file_source(place, store, [_path(row[column]) for row in rows], rows, column, options)
        sizes = [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)]
    if not sum(sizes):
        raise DataError(f"The table {place} has no rows.")
    places = [f"{group}:{row}" for group, size in enumerate(sizes) for row in range(size)]
    rows = rows or [{}] * len(places)
    items = tuple(
        SourceItem(f"{Path(name).stem}#{number}", at, (), _truth(row, options), _extra(row, options))
        for number, (at, row) in enumerate(zip(places, rows, strict=True))
    )
    return BytesSource(place, store, name, column, items)


def _read_text_table(store: Store, name: str) -> pa.Table:
    with store.open(name) as file:
        if name.endswith(".jsonl"):
            return arrow_json.read_json(file)
        # As text: a class called 007 is not 7.
        header = file.readline().decode("utf-8-sig").rstrip("\r\n")
        names = next(iter(_split_header(header)))
        file.seek(0)
        kinds = dict.fromkeys(names, pa.string())
        return arrow_csv.read_csv(file, convert_options=arrow_csv.ConvertOptions(column_types=kinds))


def _split_header(header: str) -> Iterator[list[str]]:
    import csv

    yield from csv.reader([header])


def _column(place: str, names: Sequence[str], options: SourceOptions) -> str:
    """Return the column that holds the pictures; raises DataError with the choices."""
    for what, column in (("column", options.column), ("truth column", options.truth)):
        if column is not None and column not in names:
            raise DataError(f"{place} has no {what} {column!r}; it has: {', '.join(names)}.")
    usual = options.column or next((name for name in _USUAL_COLUMNS if name in names), None)
    if usual is None:
        raise DataError(
            f"{place} has no column of pictures by a usual name ({', '.join(_USUAL_COLUMNS)}); name one of: "
            f"{', '.join(names)}."
        )
    return usual


def _file_source(
    place: str, store: Store, paths: Sequence[str], rows: Sequence[Mapping[str, Any]], column: str,
    options: SourceOptions,
) -> FileSource:  # fmt: skip
    if not paths:
        raise DataError(f"The table {place} has no rows.")
    others = [{name: value for name, value in row.items() if name != column} for row in rows]
    return FileSource(place, store, _items(paths, store, others, options), options.allow_http)


def _items(
    paths: Sequence[str], store: Store, rows: Sequence[Mapping[str, Any]], options: SourceOptions | None
) -> tuple[SourceItem, ...]:
    """Return an item for each path; one that is listed twice is told apart by its number."""
    options = options or SourceOptions()
    items, counts = [], dict[str, int]()
    for path, row in zip(paths, rows, strict=True):
        counts[path] = counts.get(path, 0) + 1
        name = path if counts[path] == 1 else f"{path}#{counts[path]}"
        stamp = _stamp(store, path)
        items.append(SourceItem(name, path, stamp, _truth(row, options), _extra(row, options)))
    return tuple(items)


def _stamp(store: Store, path: str) -> tuple[int, ...]:
    """Return size and time of a file of this machine, so that a change of it makes another job; nothing for
    one that is missing, or lies elsewhere, where each would have to be asked for.
    """
    if not isinstance(store, LocalStore) or scheme_of(path) is not None:
        return ()
    try:
        status = (store.folder / path).stat()
    except (OSError, ValueError):
        return ()
    return (status.st_size, status.st_mtime_ns)


def _truth(row: Mapping[str, Any], options: SourceOptions) -> str | None:
    value = row.get(options.truth) if options.truth is not None else None
    return None if value is None else str(value)


def _extra(row: Mapping[str, Any], options: SourceOptions) -> str | None:
    others = {name: value for name, value in row.items() if name != options.truth}
    return json.dumps(others, ensure_ascii=False, default=str) if others else None


def _path(value: Any) -> str:
    """Return the path that a cell names; an empty one is refused when it is read, with its row."""
    if isinstance(value, Mapping):
        value = value.get("path")
    return "" if value is None else str(value)


def _text(store: Store, name: str, place: str) -> str:
    try:
        return os.fsdecode(store.read(name))
    except OSError as error:
        raise DataError(f"The list {place} cannot be read: {error.strerror or error}.") from error
