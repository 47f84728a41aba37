"""The place of one image in the model's input, and the way of a map back to the image's own pixels.

Coordinates are continuous: pixel ``i`` covers ``[i, i + 1)`` and has its centre at ``i + 0.5``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True, slots=True)
class Frame:
    """The place of one image in the model's input: its size, its resized size, and where the input lies on
    the resized image.
    """

    width: int
    height: int
    """Size of the upright image in pixels."""
    resized_width: int
    resized_height: int
    left: int
    top: int
    crop_width: int
    crop_height: int
    """The input, in pixels of the resized image; with margins it begins before 0 and ends beyond it."""

    @property
    def seen_box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) of the model's input, in pixels of the upright image; with margins it reaches
        beyond the image.
        """
        return self.to_image((0, 0, self.crop_width, self.crop_height))

    @property
    def seen_share(self) -> float:
        """Share of the image's area that the model saw, 0 to 1."""
        x0, y0, x1, y1 = self.seen_box
        width, height = min(x1, self.width) - max(x0, 0.0), min(y1, self.height) - max(y0, 0.0)
        return width * height / (self.width * self.height)

    def to_image(self, box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
        """Convert a box (x0, y0, x1, y1) from pixels of the model's input to pixels of the upright image; it
        may reach beyond either.
        """
        sx, sy = self.width / self.resized_width, self.height / self.resized_height
        x0, y0, x1, y1 = box
        return (
            (self.left + x0) * sx,
            (self.top + y0) * sy,
            (self.left + x1) * sx,
            (self.top + y1) * sy,
        )

    def cell_size(self, rows: int, cols: int) -> tuple[float, float]:
        """Return (width, height) in pixels of the upright image of one cell of a map with that many rows
        and columns.
        """
        x0, y0, x1, y1 = self.seen_box
        return (x1 - x0) / cols, (y1 - y0) / rows

    def resized_to(self, longest: int) -> Frame:
        """Return the frame of the same image with its longer side so many pixels long; what the model saw of
        it keeps its place.
        """
        scale = longest / max(self.width, self.height)
        return replace(
            self, width=max(1, round(self.width * scale)), height=max(1, round(self.height * scale))
        )

    def seen(self) -> np.ndarray:
        """Return boolean array (height, width): the pixels whose centre lies within what the model saw."""
        x0, y0, x1, y1 = self.seen_box
        return np.outer(_visible_pixels(self.height, y0, y1), _visible_pixels(self.width, x0, x1))

    def unwarp(self, grid: np.ndarray) -> np.ndarray:
        """Lay a map over the image: (rows, cols) to float32 (height, width), NaN where the model never
        looked.

        The map's cells tile the input evenly; between their centres the value is bilinear, outside of the
        outermost centres it is that of the nearest cell.
        """
        if grid.ndim != 2:
            raise ValueError(f"A map has two axes (rows, cols), not shape {grid.shape}.")
        x0, y0, x1, y1 = self.seen_box
        along_y = _interpolation_matrix(self.height, y0, y1, grid.shape[0])
        along_x = _interpolation_matrix(self.width, x0, x1, grid.shape[1])
        laid: np.ndarray = along_y @ grid.astype(np.float32) @ along_x.T
        laid[~self.seen()] = np.nan
        return laid


def _visible_pixels(pixels: int, start: float, stop: float) -> np.ndarray:
    """Return which pixels of a row have their centre in [start, stop); in a tiny image without any, those
    that it cuts.
    """
    centre = np.arange(pixels) + 0.5
    inside = (centre >= start) & (centre < stop)
    return inside if inside.any() else (centre + 0.5 > start) & (centre - 0.5 < stop)


def _interpolation_matrix(pixels: int, start: float, stop: float, cells: int) -> np.ndarray:
    """Return weights (pixels, cells) that read a row of cells tiling [start, stop) at each pixel's centre,
    linearly.
    """
    position = (np.arange(pixels) + 0.5 - start) / (stop - start) * cells - 0.5
    position = np.clip(position, 0.0, cells - 1.0)
    below = np.minimum(np.floor(position).astype(int), max(cells - 2, 0))
    share = (position - below).astype(np.float32)
    weights = np.zeros((pixels, cells), dtype=np.float32)
    index = np.arange(pixels)
    weights[index, below] = 1.0 - share
    weights[index, np.minimum(below + 1, cells - 1)] += share
    return weights
