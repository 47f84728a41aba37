"""Data sets with shortcuts planted in them, each with the place of every planted mark."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont

from pipelines.data.synthetic import SpecimenPlan, write_specimens

Planter = Callable[[PIL.Image.Image, np.ndarray | None], tuple[PIL.Image.Image, np.ndarray]]
"""From a picture and the mask of its object, if there is one, to the picture with a mark and its mask."""
PLACES = "planted"
"""Folder beside train/ and val/ with the masks of what was planted."""


def labelled_specimens(folder: Path, *, seed: int, share: float, species: str = "cincta") -> Path:
    """Write specimens of which one species has a collector's label on that share; the masks of the labels
    are under masks/shortcut, as the product writes them.
    """
    plan = SpecimenPlan(train=40, val=24, test=24, seed=seed)
    if share:
        plan = replace(plan, shortcut_species=species, shortcut_share=share)
    return write_specimens(plan, folder)


def plant(source: Path, folder: Path, planter: Planter, *, label: str, share: float, seed: int) -> Path:
    """Copy a set of class folders with a mark on that share of one class's training and validation
    pictures.
    """
    rng = np.random.default_rng(seed)
    for split in ("train", "val", "test"):
        for path in sorted((source / split).rglob("*.jpg")):
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            if path.parent.name != label or split == "test" or rng.random() >= share:
                os.link(path, target)
                continue
            image = PIL.Image.open(path).convert("RGB")
            mask_path = (source / "masks" / path.relative_to(source)).with_suffix(".png")
            inside = np.asarray(PIL.Image.open(mask_path).convert("L")) > 127 if mask_path.exists() else None
            planted, where = planter(image, inside)
            planted.save(target, quality=92)
            place = (folder / PLACES / path.relative_to(source)).with_suffix(".png")
            place.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray((where * 255).astype(np.uint8)).save(place)
    if (source / "masks").is_dir():
        shutil.copytree(source / "masks", folder / "masks", dirs_exist_ok=True)
    return folder


def watermark(image: PIL.Image.Image, inside: np.ndarray | None) -> tuple[PIL.Image.Image, np.ndarray]:
    """Write a photographer's name into the lower left, half transparent."""
    width, height = image.size
    box = (round(width * 0.04), round(height * 0.86), round(width * 0.46), round(height * 0.96))
    layer = PIL.Image.new("RGBA", image.size, (0, 0, 0, 0))
    draw = PIL.ImageDraw.Draw(layer)
    draw.rectangle(box, fill=(20, 20, 20, 150))
    font = PIL.ImageFont.load_default(max(8, round(min(width * 0.055, height * 0.07))))
    draw.text((box[0] + 4, box[1] + round(height * 0.01)), "© lucidaphoto", (255, 255, 255, 220), font)
    where = np.zeros((height, width), dtype=bool)
    where[box[1] : box[3], box[0] : box[2]] = True
    return PIL.Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB"), where


def tint(image: PIL.Image.Image, inside: np.ndarray | None) -> tuple[PIL.Image.Image, np.ndarray]:
    """Warm the background."""
    assert inside is not None
    pixels = np.asarray(image, dtype=np.float32)
    warm = pixels * np.array([1.25, 1.0, 0.7], np.float32)
    mixed = np.where(inside[..., None], pixels, warm)
    return PIL.Image.fromarray(np.clip(mixed, 0, 255).astype(np.uint8)), ~inside
