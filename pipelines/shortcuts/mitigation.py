"""A folder for training that takes found shortcuts away (:mod:`pipelines.data.mitigation` reads it)."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from pathlib import Path

import numpy as np

from models.atomic_write import atomic_folder
from models.images.frame import Frame
from pipelines.data.mitigation import FORMAT, MITIGATION_FILE, Box
from pipelines.shortcuts.evidence import SeenImage
from pipelines.shortcuts.finder import ShortcutSearch

_MOST_PATCHES = 12
"""Of a finding."""


def write_mitigation(search: ShortcutSearch, folder: Path) -> int:
    """Write the found parts and their places into a new folder; return how many pictures have one.

    Findings of the light have no place, and are left out: vary the colours in training instead. Raises
    FileExistsError.
    """
    places: dict[str, list[Box]] = defaultdict(list)
    patches: list[tuple[Box, bytes]] = []
    for finding in search.findings:
        if finding.suspicion.kind == "light":
            continue
        for number, image in enumerate(finding.suspicion.carriers):
            box = box_in_image(image.frame, finding.suspicion.masks[image.name])
            places[image.sha256].append(box)
            if number < _MOST_PATCHES:
                patches.append((box, _cut(image, box)))
    content = {
        "format": FORMAT,
        "places": dict(places),
        "patches": [box for box, _ in patches],
    }
    with atomic_folder(folder) as aside:
        for number, (_, data) in enumerate(patches):
            (aside / f"part-{number:03d}.png").write_bytes(data)
        (aside / MITIGATION_FILE).write_text(json.dumps(content, indent=2))
    return len(places)


def box_in_image(frame: Frame, mask: np.ndarray) -> Box:
    """Return the box round a mask of the model's input as shares of the upright image."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    down, across = frame.crop_height / mask.shape[0], frame.crop_width / mask.shape[1]
    x0, y0, x1, y1 = frame.to_image(
        (cols[0] * across, rows[0] * down, (cols[-1] + 1) * across, (rows[-1] + 1) * down)
    )
    width, height = frame.width, frame.height
    return (
        max(0.0, x0 / width), max(0.0, y0 / height), min(1.0, x1 / width), min(1.0, y1 / height)
    )  # fmt: skip


def _cut(image: SeenImage, box: Box) -> bytes:
    """Return the part as PNG, in the pixels of its file."""
    decoded, _ = image.read()
    width, height = decoded.pil.size
    part = decoded.pil.crop(
        (int(box[0] * width), int(box[1] * height), round(box[2] * width), round(box[3] * height))
    )
    buffer = io.BytesIO()
    part.save(buffer, "PNG")
    return buffer.getvalue()
