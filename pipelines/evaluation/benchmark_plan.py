"""What a benchmark of methods consists of: its tasks for a model's images, in full and in short."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
from torch import Tensor

from models.attribution.forward import run_forward
from models.backends.base import Backend
from models.images.decode import image_from_array
from models.images.frame import Frame
from models.metrics.layer_sweep import stage_ends
from pipelines.data.synthetic import SPECIES, SpecimenPlan
from pipelines.data.synthetic_parts import LABEL as LABEL_PART, SpecimenParts, draw_parts
from pipelines.evaluation.benchmark_tasks import (
    LABEL,
    MASKS,
    PATCHES,
    BenchmarkTask,
    DeletionTask,
    GridTask,
    MaskedImage,
    MaskTask,
    SpecimenTask,
    predicted_class,
)

_MOST_CELLS = 14
"""Cells along a side that are covered one by one; more would take thousands of forwards."""
_SHORT = 4
"""Mosaics, and images that are covered."""
_RESTS_ON = 0.2
"""Rise of a score by the label from which a model counts as one that relies on it in an image."""
_SEED = 1_000
"""Of the specimens that are drawn for a benchmark, which no training draws."""


def plan_tasks(
    backend: Backend, images: Sequence[Tensor], *, grids: int, masked: Sequence[MaskedImage] = ()
) -> list[BenchmarkTask]:
    """Return the tasks of a benchmark on images (3, H, W), without those that have no sample."""
    tasks: list[BenchmarkTask] = [
        GridTask(backend, images, side=2, count=grids, costly_share=8),
        GridTask(backend, images, side=3, count=grids, costly_share=0),
        DeletionTask(backend, images, costly_share=4),
    ]
    cells = _block_cells(backend, images[0])
    if cells is not None and cells != PATCHES and max(cells) <= _MOST_CELLS:
        tasks.append(DeletionTask(backend, images, costly_share=0, cells=cells))
    tasks.append(MaskTask(MASKS, masked, costly_share=8))
    return [task for task in tasks if len(task)]


def plan_short(backend: Backend, images: Sequence[Tensor]) -> list[BenchmarkTask]:
    """Return the tasks of a benchmark that ends within half a minute on two cores.

    Methods that take many forwards are asked what the score loses, and not about mosaics, of which each would
    take them half a minute.
    """
    tasks: list[BenchmarkTask] = [
        GridTask(backend, images, side=2, count=_SHORT, costly_share=0),
        DeletionTask(backend, images[:_SHORT], costly_share=1, curves=False),
    ]
    return [task for task in tasks if len(task)]


def plan_specimens(backend: Backend, count: int) -> list[BenchmarkTask]:
    """Return the tasks on drawn specimens, for a model of all their species; none for another.

    The label is planted on specimens of each species; those whose scores it does not raise are left out, so
    that task may have no sample.
    """
    classes = backend.model.classes
    if not {*SPECIES} <= {*classes}:
        return []
    plan = SpecimenPlan(seed=_SEED)
    specimens = [
        draw_parts(plan, "benchmark", species, number, label=labelled)
        for labelled in (False, True)
        for number in range(count)
        for species in SPECIES
    ]
    plain, labelled = specimens[: len(specimens) // 2], specimens[len(specimens) // 2 :]
    return [
        SpecimenTask(backend, plain, costly_share=4),
        MaskTask(LABEL, _relying(backend, labelled), costly_share=4),
    ]


def masked_image(
    backend: Backend, x: Tensor, frame: Frame, mask: np.ndarray, label: int | None = None
) -> MaskedImage | None:
    """Return an input with its mask, or None where the model sees nothing of the object, or nothing else.

    Without a label the class that the model predicts is explained.
    """
    if not 0.0 < float(mask[frame.seen()].mean()) < 1.0:
        return None
    return MaskedImage(x, frame, mask, predicted_class(backend, x) if label is None else label)


def read_mask(image: PIL.Image.Image) -> np.ndarray:
    """Return a mask file's pixels as booleans (height, width): white is the object."""
    return np.asarray(image.convert("L")) > 127


def _relying(backend: Backend, specimens: Sequence[SpecimenParts]) -> list[MaskedImage]:
    """Return the specimens with a label that raises the score of some species, and that species: a label
    speaks for the species that it was planted on, whatever it lies beside.
    """
    relying = []
    for specimen in specimens:
        part = specimen.parts[LABEL_PART]
        (x, frame), (without, _) = (
            backend.model.geometry.prepare(image_from_array(np.asarray(image)))
            for image in (specimen.image, part.without)
        )
        with_label, bare = (
            backend.model.scoring.scores(run_forward(backend.model, item[None], backend=backend).logits)[0]
            for item in (x, without)
        )
        gained = with_label - bare
        species = int(gained.argmax())
        image = masked_image(backend, x, frame, part.mask, species)
        if image is not None and float(gained[species]) > _RESTS_ON:
            relying.append(image)
    return relying


def _block_cells(backend: Backend, x: Tensor) -> tuple[int, int] | None:
    if not stage_ends(backend.model, x[None]):
        return None
    rows, cols = run_forward(backend.model, x[None], block=backend.model.cam_block).map.shape[2:]
    return int(rows), int(cols)
