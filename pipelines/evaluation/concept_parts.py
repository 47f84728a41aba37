"""Whether a model's concepts are the parts that people have marked, by masks of parts.

A concept has a block's cells and no more, so both are compared there: the cells that have the concept, and
those of which a tenth or more belongs to the part.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from models.backends.base import Backend
from models.devices import to_numpy
from models.introspection.concept_set import ConceptSet
from models.networks.transfer_model import TransferModel
from pipelines.data.dataset import Dataset, Sample
from pipelines.evaluation.explanations import part_trees, read_mask

MATCHES_FROM = 0.5
"""Intersection over union from which on a picture's part counts as matched."""
_COVERED = 0.1
"""Share of a cell that belongs to the part."""
_BATCH = 16


@dataclass(frozen=True, slots=True)
class PartMatch:
    """The concept that lies on a part of one class's pictures."""

    part: str
    label: str
    number: int
    """The concept that matched best in the pictures that the concepts were fitted on."""
    images: int
    """Held-out pictures of the class with that part."""
    matched: int
    """Those with an intersection over union of 0.5 or more."""
    mean_iou: float


def match_parts(
    model: TransferModel, data: Dataset, concepts: ConceptSet, fitted: tuple[Sequence[Sample], Tensor],
    held_out: Sequence[Sample], backend: Backend,
) -> Iterator[PartMatch]:  # fmt: skip
    """Yield for every part and class the concept that was chosen on the fitted samples, by their codes, and
    how it does on those held out; nothing for a data set without masks of parts.
    """
    trees = part_trees(data)
    if not trees:
        return
    samples, codes = fitted
    held_out_codes = _encode(model, backend, held_out, concepts)
    for part, tree in trees.items():
        chosen_by = _overlaps(model, tree, samples, codes, concepts)
        checked_by = _overlaps(model, tree, held_out, held_out_codes, concepts)
        for labels in sorted(set(chosen_by) & set(checked_by)):
            scores = chosen_by[labels]
            number = int(np.argmax((scores >= MATCHES_FROM).mean(0) + 0.01 * scores.mean(0)))
            overlaps = checked_by[labels][:, number]
            label = " + ".join(data.classes[index] for index in labels)
            matched = int((overlaps >= MATCHES_FROM).sum())
            yield PartMatch(part, label, number, len(overlaps), matched, float(overlaps.mean()))


def _encode(
    model: TransferModel, backend: Backend, samples: Sequence[Sample], concepts: ConceptSet
) -> Tensor:
    codes = []
    for start in range(0, len(samples), _BATCH):
        x = model.geometry.prepare_files(sample.path for sample in samples[start : start + _BATCH])
        with torch.no_grad():
            value = model.as_map(concepts.block, backend.until(concepts.block, x))
        codes.append(concepts.encode(value))
    return torch.cat(codes)


def _overlaps(
    model: TransferModel, tree: Path, samples: Sequence[Sample], codes: Tensor, concepts: ConceptSet
) -> dict[tuple[int, ...], np.ndarray]:
    """Return by labels the intersection over union (pictures, concepts) of the part's cells with those of
    each concept; pictures without the part are left out.
    """
    rows: dict[tuple[int, ...], list[np.ndarray]] = {}
    active = to_numpy(codes) >= to_numpy(concepts.levels)[:, None, None]
    for sample, cells in zip(samples, active, strict=True):
        mask = read_mask(tree, sample, (sample.width, sample.height))
        part = _cells_of(model, sample, mask, cells.shape[1:]) if mask is not None else None
        if part is not None and part.any():
            union = (cells | part).sum((1, 2))
            rows.setdefault(sample.labels, []).append((cells & part).sum((1, 2)) / np.maximum(union, 1))
    return {labels: np.stack(values) for labels, values in rows.items()}


def _cells_of(model: TransferModel, sample: Sample, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return the cells (rows, cols) of which a tenth or more belongs to a mask of the upright image."""
    frame = model.geometry.frame(sample.width, sample.height)
    x0, y0, x1, y1 = (round(edge) for edge in frame.seen_box)
    seen = PIL.Image.fromarray((mask * 255).astype(np.uint8)).crop((x0, y0, x1, y1))
    rows, cols = size
    shares = np.asarray(seen.resize((cols, rows), PIL.Image.Resampling.BOX)) / 255
    cells: np.ndarray = shares >= _COVERED
    return cells
