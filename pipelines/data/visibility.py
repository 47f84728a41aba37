"""How much of each picture a model sees, in one sentence for those who train, review and explain."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean

from models.images.geometry import Geometry
from pipelines.data.dataset import Sample


def seen_shares(geometry: Geometry, samples: Iterable[Sample]) -> list[float]:
    """Return the share of each picture's area that the model sees, 0 to 1."""
    return [geometry.frame(sample.width, sample.height).seen_share for sample in samples]


def describe_view(geometry: Geometry, shares: Sequence[float]) -> str:
    """Return what a model with this geometry sees of pictures of which it sees these shares."""
    size = f"{geometry.crop_width} x {geometry.crop_height} pixels"
    if geometry.view == "whole":
        return f"The model sees the whole of each picture, resized to {size}."
    if geometry.view == "pad":
        return f"The model sees the whole of each picture in its own shape, with margins to {size}."
    return (
        f"The model sees the centre of each picture: {fmean(shares):.0%} of its area on average, "
        f"{min(shares):.0%} at least."
    )
