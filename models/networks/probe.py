"""The image by which a bundle is known to answer as it did when it was saved."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from models.images.geometry import Geometry


@lru_cache(maxsize=4)
def probe_pixels(geometry: Geometry) -> np.ndarray:
    """Return a seeded image of soft colour clouds, uint8; drawn rather than taken, so that no user's
    image travels.
    """
    rng = np.random.default_rng(20)
    height, width = geometry.crop_height + 32, geometry.crop_width + 32
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    pixels = np.full((height, width, 3), 0.5)
    for _ in range(14):
        cy, cx, radius = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(12, 70)
        cloud = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * radius**2))
        pixels += cloud[..., None] * rng.uniform(-0.6, 0.6, size=3)
    rounded: np.ndarray = np.rint(np.clip(pixels, 0, 1) * 255).astype(np.uint8)
    return rounded
