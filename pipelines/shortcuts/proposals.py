"""Parts that many pictures of a class share, as guesses of what the model relies on there.

A guess costs nothing: maps alone do not tell a shortcut from an object, and clusters are what the method
makes them. What is reported is decided by covering and pasting (:mod:`pipelines.shortcuts.interventions`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.shortcuts.evidence import EvidencePart, SeenImage

FEWEST_MEMBERS = 6
_MOST_CLUSTERS, _MEMBERS_A_CLUSTER = 6, 8
_COMPONENTS = 12
_PLACE_WEIGHT, _COLOUR_WEIGHT = 2.0, 1.0


@dataclass(frozen=True)
class Proposal:
    """Parts of pictures that were answered with one class, alike in content, place and colour."""

    label: int
    images: tuple[SeenImage, ...] = field(repr=False)
    parts: tuple[EvidencePart, ...] = field(repr=False)
    """One for each picture."""

    @property
    def region(self) -> np.ndarray:
        """Boolean (H, W): what most of the parts cover."""
        share = np.mean([part.mask for part in self.parts], axis=0)
        most: np.ndarray = share >= min(0.5, float(share.max()))
        return most


def propose(images: Sequence[SeenImage], *, seed: int = 0) -> list[Proposal]:
    """Return the clusters of the parts of each predicted class that have at least 6 pictures."""
    proposals = []
    for label in sorted({image.predicted for image in images}):
        own = [(image, part) for image in images if image.predicted == label for part in image.parts]
        for members in _clusters([part for _, part in own], seed):
            # Of two parts of one picture in a cluster, the one with more evidence speaks for it.
            first: dict[str, tuple[SeenImage, EvidencePart]] = {}
            for image, part in sorted((own[n] for n in members), key=lambda pair: -pair[1].evidence):
                first.setdefault(image.name, (image, part))
            if len(first) >= FEWEST_MEMBERS:
                chosen = [first[name] for name in sorted(first)]
                proposals.append(
                    Proposal(label, tuple(item for item, _ in chosen), tuple(part for _, part in chosen))
                )
    return proposals


def _clusters(parts: Sequence[EvidencePart], seed: int) -> list[list[int]]:
    """Return the places of the parts of each cluster, by k-means of what is under the evidence, its place and
    its colour.
    """
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    if len(parts) < FEWEST_MEMBERS:
        return []
    content = np.stack([part.descriptor for part in parts])
    components = min(_COMPONENTS, *content.shape)
    reduced = PCA(components, random_state=seed).fit_transform(content)
    # Each of the three counts alike, whatever its number of columns.
    spread = float(np.sqrt(reduced.var(axis=0).sum())) or 1.0
    place = np.array([part.centre for part in parts]) / 0.29
    colour = np.stack([part.colour for part in parts]) / 0.25
    points = np.hstack([reduced / spread, _PLACE_WEIGHT * place / 2, _COLOUR_WEIGHT * colour / 2])
    count = int(np.clip(len(parts) // _MEMBERS_A_CLUSTER, 1, _MOST_CLUSTERS))
    numbers = KMeans(count, n_init=4, random_state=seed).fit_predict(points)
    return [list(np.flatnonzero(numbers == number)) for number in range(count)]
