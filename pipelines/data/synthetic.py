"""The embedded data set: invented butterflies, drawn on the spot, whose diagnostic mark is known to the
pixel.

All species share wings, palettes, poses and backgrounds; only the mark tells them apart. So an image carries
its own ground truth for explanations: a model that has learnt the species must look at the mark. On request a
shortcut is planted, a collector's label in a corner of most training images of one species, for a model to
fall for.

Written as an ordinary image folder: ``train/ val/ test/`` by species, and under ``masks/`` the same tree of
the body (255 = butterfly), of the mark (``masks/mark``) and of the planted label (``masks/shortcut``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import PIL.Image

from models.atomic_write import atomic_folder
from models.progress import Progress, no_progress
from pipelines.data.synthetic_drawing import Canvas
from pipelines.errors import DataError

SPECIES = {
    "argus": "a ringed eyespot on each forewing",
    "cincta": "a pale band across the wings",
    "caudata": "a tail on each hindwing",
    "apicata": "bright tips of the forewings",
    "punctata": "a row of pale dots along the hindwing's margin",
}
"""Species and the mark that makes it."""

_SUPERSAMPLING = 2


@dataclass(frozen=True, slots=True)
class SpecimenPlan:
    """A plan of how many specimens to draw and what to plant; the same plan always gives the same images."""

    train: int = 24
    val: int = 12
    test: int = 12
    """Images of each species."""
    side: int = 320
    """Longer side in pixels."""
    seed: int = 0
    shortcut_species: str = ""
    """Species whose train and val images get a collector's label; the test split never has one."""
    shortcut_share: float = 0.85


@dataclass(frozen=True, slots=True)
class Specimen:
    """A drawn image with its ground truth."""

    image: PIL.Image.Image
    body: PIL.Image.Image
    mark: PIL.Image.Image
    """Masks in mode L: 255 where it is."""
    shortcut: PIL.Image.Image | None


def write_specimens(plan: SpecimenPlan, folder: Path, *, progress: Progress = no_progress) -> Path:
    """Draw the whole set into ``folder`` and return it; a folder that holds the same plan already is kept as
    it is.

    The folder appears whole or not at all. Raises DataError when it holds something else.
    """
    if plan.seed < 0:
        raise DataError(f"The seed is {plan.seed}; it must be at least 0.")
    if plan.shortcut_species and plan.shortcut_species not in SPECIES:
        raise DataError(f"Unknown species {plan.shortcut_species!r}; choose one of: {', '.join(SPECIES)}.")
    note = folder / "specimens.json"
    content = json.dumps({"plan": asdict(plan), "species": SPECIES}, indent=2)
    if folder.exists():
        if note.is_file() and note.read_text() == content:
            return folder
        raise DataError(
            f"The folder {folder} exists and does not hold these specimens; name another or remove it."
        )
    with atomic_folder(folder) as aside:
        jobs = [(plan, aside, *names) for names in _list_specimens(plan)]
        # Spawned, not forked: the caller may hold torch's threads. A worker imports only what drawing needs.
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            for done, _ in enumerate(pool.map(_draw_and_save, jobs, chunksize=4), start=1):
                progress("drawing specimens", done, len(jobs))
        (aside / note.name).write_text(content)
    return folder


def draw_specimen(plan: SpecimenPlan, split: str, species: str, number: int) -> Specimen:
    """Draw one image; it depends on the plan's seed and on these names alone."""
    canvas, size = begin_canvas(plan, split, species, number)
    rng = canvas.rng
    body, mark = canvas.butterfly(species)
    canvas.light()
    planted = species == plan.shortcut_species and split != "test" and rng.random() < plan.shortcut_share
    shortcut = canvas.label(species) if planted else None
    return Specimen(
        image=canvas.finish(size),
        body=shrink_mask(body, size),
        mark=shrink_mask(mark, size),
        shortcut=shrink_mask(shortcut, size) if shortcut is not None else None,
    )


def begin_canvas(plan: SpecimenPlan, split: str, species: str, number: int) -> tuple[Canvas, tuple[int, int]]:
    """Return the ground on which a specimen is drawn, in its pose, and the image's final size."""
    rng = np.random.default_rng([plan.seed, *f"{split}/{species}".encode(), number])
    width, height = plan.side, plan.side
    shape = rng.integers(0, 3)
    if shape == 1:
        height = round(plan.side * 0.84)
    elif shape == 2:
        width = round(plan.side * 0.84)
    return Canvas(width * _SUPERSAMPLING, height * _SUPERSAMPLING, rng), (width, height)


def _list_specimens(plan: SpecimenPlan) -> Iterator[tuple[str, str, int]]:
    for split, count in (("train", plan.train), ("val", plan.val), ("test", plan.test)):
        for species in SPECIES:
            for number in range(count):
                yield split, species, number


def _draw_and_save(job: tuple[SpecimenPlan, Path, str, str, int]) -> None:
    plan, root, split, species, number = job
    _save(draw_specimen(plan, split, species, number), root, split, species, f"{species}_{number:03d}")


def _save(specimen: Specimen, root: Path, split: str, species: str, name: str) -> None:
    masks = {"masks": specimen.body, "masks/mark": specimen.mark}
    if specimen.shortcut is not None:
        masks["masks/shortcut"] = specimen.shortcut
    for tree, mask in masks.items():
        (root / tree / split / species).mkdir(parents=True, exist_ok=True)
        mask.save(root / tree / split / species / f"{name}.png", optimize=False)
    (root / split / species).mkdir(parents=True, exist_ok=True)
    specimen.image.save(root / split / species / f"{name}.jpg", quality=92)


def shrink_mask(mask: np.ndarray, size: tuple[int, int]) -> PIL.Image.Image:
    """Return a boolean mask at an image's final size, 255 where it is."""
    small = PIL.Image.fromarray((mask * 255).astype(np.uint8)).resize(size, PIL.Image.Resampling.BOX)
    return small.point([255 if value >= 128 else 0 for value in range(256)])
