"""Computed features on disk, keyed by all that they depend on, so that a rerun reads instead of computing.

What fits into the memory budget is held there; the rest is memory-mapped and its pages are let go after each
read, so that memory stays bounded however large the set is. The oldest files go first when the disk budget is
met. A file is written aside and renamed: what carries a key's name is complete.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.atomic_write import atomic_open
from pipelines.errors import TrainingError

CACHE_VARIABLE = "LUCIDA_CACHE"
_SUFFIX = ".npy"
_NAME, _PART = re.compile(r"[0-9a-f]{64}\.npy"), re.compile(r"\.[0-9a-f]{64}\.npy\.(\d+)\.part")
"""Only what is called so is ours to delete."""


def default_cache_folder() -> Path:
    """Return $LUCIDA_CACHE, or camera-lucida/features in the user's cache folder."""
    if named := os.environ.get(CACHE_VARIABLE):
        return Path(named)
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "camera-lucida" / "features"


def make_key(parts: Mapping[str, Any]) -> str:
    """Return the name of what these plain values determine."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class CachedFeatures:
    """An array (N, …) float32 of which rows are taken, from memory or from its file."""

    def __init__(self, path: Path | None, held: np.ndarray | None, shape: tuple[int, ...]) -> None:
        self.shape, self._held, self._map = shape, held, None
        if held is None and path is not None:
            with path.open("rb") as file:
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                offset = file.tell()
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._view = np.frombuffer(self._map, np.float32, offset=offset).reshape(shape)

    @property
    def in_memory(self) -> bool:
        """Whether the rows are held rather than read from disk."""
        return self._held is not None

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, index: np.ndarray | slice) -> Tensor:
        """Return a copy of those rows."""
        if self._held is not None:
            return torch.from_numpy(np.ascontiguousarray(self._held[index]).copy())
        taken = np.array(self._view[index])
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)
        return torch.from_numpy(taken)


class FeatureCache:
    """A folder of arrays under two budgets."""

    def __init__(self, folder: Path, *, memory_gb: float, disk_gb: float) -> None:
        self.folder = folder
        self._memory_left, self._disk = int(memory_gb * 1e9), int(disk_gb * 1e9)
        self._own: set[str] = set()

    def room(self, row_bytes: int, rows: int) -> int:
        """Return how many arrays of that size can be kept at once."""
        return max(self._disk, self._memory_left) // max(row_bytes * rows, 1)

    def get(
        self, key: str, shape: tuple[int, ...], fill: Callable[[Callable[[int, Tensor], None]], None]
    ) -> CachedFeatures:
        """Return the array of that key; where there is none yet, ``fill`` is called with a function that
        takes (first row, rows) and must be called until all rows are given.

        Raises TrainingError when the disk is full; nothing half-written keeps the key's name.
        """
        path = self.folder / f"{key}{_SUFFIX}"
        size = int(np.prod(shape)) * 4
        if self._disk < size:
            held = np.empty(shape, np.float32)
            fill(lambda start, rows: _put(held, start, rows))
            self._memory_left -= size
            return CachedFeatures(None, held, shape)
        self._own.add(path.name)
        try:
            return self._open(path, size, shape)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            # Not there, not whole, or deleted by another process between two looks.
            self._write(path, shape, fill)
            return self._open(path, size, shape)

    def _open(self, path: Path, size: int, shape: tuple[int, ...]) -> CachedFeatures:
        if path.stat().st_size <= size:
            raise ValueError(f"{path} is not whole.")
        os.utime(path)
        if size > self._memory_left:
            return CachedFeatures(path, None, shape)
        held = np.load(path, allow_pickle=False)
        self._memory_left -= size
        return CachedFeatures(None, held, shape)

    def release(self, stored: CachedFeatures) -> None:
        """Give back the memory of an array that is no longer used."""
        if stored.in_memory:
            self._memory_left += int(np.prod(stored.shape)) * 4

    def _write(
        self, path: Path, shape: tuple[int, ...], fill: Callable[[Callable[[int, Tensor], None]], None]
    ) -> None:
        size = int(np.prod(shape)) * 4
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make_room(size)
            with atomic_open(path) as file:
                np.lib.format.write_array_header_1_0(
                    file, {"descr": "<f4", "fortran_order": False, "shape": shape}
                )

                def append(start: int, rows: Tensor) -> None:
                    # Written in order, so the place in the file is where the last call ended.
                    file.write(rows.contiguous().numpy().astype("<f4", copy=False).tobytes())

                fill(append)
        except OSError as error:
            raise TrainingError(
                f"The feature cache {self.folder} cannot take {size / 1e9:.2f} GB more: {error.strerror}. "
                f"Free space there, point {CACHE_VARIABLE} elsewhere, or set cache_disk_gb = 0."
            ) from error

    def _make_room(self, size: int) -> None:
        """Delete what crashed runs left, then the files that were used longest ago, until the new one
        fits.
        """
        for part in self.folder.glob(".*.part"):
            if (match := _PART.fullmatch(part.name)) and not _alive(int(match[1])):
                part.unlink(missing_ok=True)
        arrays = _arrays(self.folder)
        used = sum(bytes_ for _, _, bytes_ in arrays)
        for _, path, bytes_ in arrays:
            if used + size <= self._disk:
                break
            if path.name not in self._own:
                used -= bytes_
                # Whoever has it mapped keeps it until they are done.
                path.unlink(missing_ok=True)


def cache_size(folder: Path) -> tuple[int, int]:
    """Return (files, bytes) of the cache."""
    arrays = _arrays(folder)
    return len(arrays), sum(bytes_ for _, _, bytes_ in arrays)


def clear_cache(folder: Path) -> None:
    """Delete the cached arrays, and nothing else that may lie in the folder."""
    for _, path, _ in _arrays(folder):
        path.unlink(missing_ok=True)


def _arrays(folder: Path) -> list[tuple[float, Path, int]]:
    """Return (last use, file, bytes) of every array, the one used longest ago first."""
    arrays = []
    for path in folder.glob(f"*{_SUFFIX}"):
        if _NAME.fullmatch(path.name):
            with suppress(FileNotFoundError):  # another process made room
                status = path.stat()
                arrays.append((status.st_mtime, path, status.st_size))
    return sorted(arrays)


def _put(held: np.ndarray, start: int, rows: Tensor) -> None:
    held[start : start + len(rows)] = rows.numpy()


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
