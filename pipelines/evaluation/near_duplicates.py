"""Pictures of two splits that are almost the same: what is measured on them is no evidence.

Two pictures are alike by their perceptual hashes (64 bits of the low frequencies, by ImageHash), mirrored or
not, or by looser hashes together with features of nearly one direction, as a cropped copy has.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import PIL.Image

from models.images.decode import read_image
from models.progress import Progress, no_progress
from pipelines.data.dataset import Sample

_ALIKE_BITS = 8
"""A copy compressed, resized or made brighter differs in at most 8 bits, other photographs in 12 or more."""
_LOOSE_BITS, _ALIKE_COSINE = 12, 0.85
"""A copy cropped by 5 % differs in about 10 bits, and its features have a cosine of 0.95."""
_HASHED_SIDE = 256
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class NearDuplicate:
    """A held-out picture beside the training picture that it is almost a copy of."""

    trained: Sample
    held_out: Sample
    bits: int
    """Of 64 in which their perceptual hashes differ."""
    cosine: float
    """Of their features, -1 to 1."""


def find_near_duplicates(
    trained: Sequence[Sample],
    held_out: Sequence[Sample],
    trained_vectors: np.ndarray,
    held_out_vectors: np.ndarray,
    *,
    progress: Progress = no_progress,
) -> list[NearDuplicate]:
    """Return for each held-out picture that has one the training picture most alike, the closest pairs first;
    vectors are their features (N, D). Pairs of the very same content are left out: the data set names them.
    """
    both = [*trained, *held_out]
    hashes = _hash_all(both, progress)
    own = np.stack([plain for plain, _ in hashes[: len(trained)]])
    mirrored = np.stack([turned for _, turned in hashes[: len(trained)]])
    directions, others = _unit(trained_vectors), _unit(held_out_vectors)
    pairs = []
    for start in range(0, len(held_out), _BLOCK):
        block = held_out[start : start + _BLOCK]
        hashed = np.stack([plain for plain, _ in hashes[len(trained) + start :][: len(block)]])
        bits = np.minimum(_distances(hashed, own), _distances(hashed, mirrored))
        cosine = others[start : start + _BLOCK] @ directions.T
        alike = (bits <= _ALIKE_BITS) | ((bits <= _LOOSE_BITS) & (cosine >= _ALIKE_COSINE))
        for row in np.flatnonzero(alike.any(axis=1)).tolist():
            nearest = int(np.where(alike[row], bits[row] - cosine[row], np.inf).argmin())
            if trained[nearest].sha256 != block[row].sha256:
                pairs.append(
                    NearDuplicate(
                        trained[nearest], block[row], int(bits[row, nearest]), float(cosine[row, nearest])
                    )
                )
    return sorted(pairs, key=lambda pair: (pair.bits, -pair.cosine, pair.held_out.name))


def _hash_all(samples: Sequence[Sample], progress: Progress) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return each picture's hash and its mirror image's; decoding leaves the interpreter, so threads help."""
    hashes, threads = [], ThreadPoolExecutor()
    try:
        for done, pair in enumerate(threads.map(_hash, samples), start=1):
            hashes.append(pair)
            progress("looking for near duplicates", done, len(samples))
    finally:
        # Stopped by Ctrl-C, what has not begun is left.
        threads.shutdown(cancel_futures=True)
    return hashes


def _hash(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Return (8,) uint8 of a picture and of its mirror image."""
    import imagehash

    small = read_image(sample.path).pil.convert("L")
    small.thumbnail((_HASHED_SIDE, _HASHED_SIDE))
    turned = small.transpose(PIL.Image.Transpose.FLIP_LEFT_RIGHT)
    plain, mirrored = (np.packbits(imagehash.phash(image).hash.ravel()) for image in (small, turned))
    return plain, mirrored


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return (N, M) how many bits differ between hashes (N, 8) and (M, 8) of uint8."""
    one, other = (np.ascontiguousarray(item).view(np.uint64)[:, 0] for item in (first, second))
    return np.asarray(np.bitwise_count(one[:, None] ^ other[None, :]))


def _unit(vectors: np.ndarray) -> np.ndarray:
    rows = vectors.astype(np.float32)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))
