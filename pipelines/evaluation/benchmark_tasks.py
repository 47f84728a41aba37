"""What a benchmark asks of maps; none of it can be answered by being concentrated or by lying in the middle.

- grids: in a mosaic of pictures of different classes, is the map of a class in its cell?
- single deletion: does the map rank places by what the logit loses when each alone is covered, by two covers?
- deletion and insertion: how far does the score follow the order of the map (its area)?
- masks: where the object's mask is known, is the map on it, more than another class's or picture's is?
- specimens: does the map rank the parts of a drawn specimen by what the logit really loses without each?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from models.attribution.forward import predict_logits, run_forward
from models.attribution.targets import make_target
from models.backends.base import Backend
from models.devices import to_numpy
from models.images.decode import image_from_array
from models.images.frame import Frame
from models.metrics.agreement import rank_correlation
from models.metrics.faithfulness import patch_losses, rank_patches, score_curves
from models.metrics.image_grids import build_grids
from models.metrics.localization import auroc, auroc_on, cell_areas, localize
from pipelines.data.synthetic_parts import SpecimenParts

Row = dict[str, Any]
GRID, DELETION, CELLS, MASKS, SPECIMENS, LABEL = (
    "grid", "deletion", "deletion by cells", "masks", "specimens", "planted label"
)  # fmt: skip
MapMaker = Callable[[Tensor, Sequence[int]], list[np.ndarray]]
"""Makes a map (rows, cols) for each class of an input (3, H, W); none where it cannot."""
CEILING = "agreement of the two covers"
PATCHES = (7, 7)
_STEPS = 10
_COUNTS = 0.05
"""Share of the largest loss from which a part counts as one that the score rests on."""


class BenchmarkTask(Protocol):
    """A task of so many samples."""

    name: str
    costly_share: int
    """Makers of maps that take many forwards are asked about one in so many samples; 0 for none."""

    def __len__(self) -> int:
        """Return the number of samples."""

    def measure(self, sample: int, makers: Mapping[str, MapMaker]) -> list[Row]:
        """Return the figures of each maker's map, named by "candidate"."""

    def case(self, row: Row) -> BenchmarkCase:
        """Return what a row was measured on."""


@dataclass(frozen=True, slots=True)
class BenchmarkCase:
    """An input with the class that was explained."""

    x: Tensor
    """(3, H, W)"""
    label: int


class GridTask:
    """The grid pointing game in mosaics of side x side images (3, H, W)."""

    def __init__(
        self, backend: Backend, images: Sequence[Tensor], *, side: int, count: int, costly_share: int
    ) -> None:
        self.name, self.costly_share = f"{GRID} {side}x{side}", costly_share
        self.grids = build_grids(backend, images, side=side, count=count)

    def __len__(self) -> int:
        """Return the number of mosaics."""
        return len(self.grids)

    def measure(self, sample: int, makers: Mapping[str, MapMaker]) -> list[Row]:
        """Return a row for each cell, with the AUROC of the next cell's class in it as a control."""
        grid, rows = self.grids[sample], []
        for name, make in makers.items():
            maps = make(grid.x, grid.classes)
            for cell, values in enumerate(maps):
                mask = grid.mask(cell)
                other = auroc_on(maps[(cell + 1) % len(maps)], grid.frame, mask)
                rows.append(_located(name, values, grid.frame, mask) | {"cell": cell, "other_class": other})
        return rows

    def case(self, row: Row) -> BenchmarkCase:
        """Return a mosaic with the class of the row's cell."""
        grid = self.grids[row["sample"]]
        return BenchmarkCase(grid.x, grid.classes[row["cell"]])


class DeletionTask:
    """Single deletion by a grid of patches, and the curves of deletion and insertion."""

    def __init__(
        self, backend: Backend, images: Sequence[Tensor], *, costly_share: int,
        cells: tuple[int, int] | None = None, curves: bool = True,
    ) -> None:  # fmt: skip
        self.name = DELETION if cells is None else CELLS
        self.costly_share, self._curves = costly_share, curves and cells is None
        self._backend, self._images, self._cells = backend, images, cells

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def measure(self, sample: int, makers: Mapping[str, MapMaker]) -> list[Row]:
        """Return how each map ranks the patches of an image, and first how the two covers agree."""
        x = self._images[sample]
        top = predicted_class(self._backend, x)
        target = make_target(self._backend.model.classes, top)
        grid = self._cells or PATCHES
        losses = {
            cover: patch_losses(self._backend, x, target, cover, grid=grid) for cover in ("blur", "mean")
        }
        ceiling = rank_correlation(losses["blur"], losses["mean"])
        rows: list[Row] = [{"candidate": CEILING, "blur": ceiling, "mean": ceiling}]
        for name, make in makers.items():
            for values in make(x, [top]):
                if not values.any():
                    continue
                row = {cover: rank_patches(values, lost) for cover, lost in losses.items()}
                if self._curves:
                    ((deletion, insertion),) = score_curves(
                        self._backend, x, [values], target, "blur", _STEPS, seed=sample
                    )
                    row["area_between"] = insertion.area - deletion.area
                rows.append({"candidate": name} | row)
        return rows

    def case(self, row: Row) -> BenchmarkCase:
        """Return an image with the class that is predicted."""
        x = self._images[row["sample"]]
        return BenchmarkCase(x, predicted_class(self._backend, x))


@dataclass(frozen=True, slots=True)
class MaskedImage:
    """An input with the mask of what it shows."""

    x: Tensor
    """(3, H, W)"""
    frame: Frame
    mask: np.ndarray
    """Boolean (height, width) of the upright image."""
    label: int
    """The class that is explained."""


class MaskTask:
    """Maps held against masks, of objects or of a planted label."""

    def __init__(self, name: str, images: Sequence[MaskedImage], *, costly_share: int) -> None:
        self.name, self.costly_share, self._images = name, costly_share, images

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._images)

    def measure(self, sample: int, makers: Mapping[str, MapMaker]) -> list[Row]:
        """Return a row for each maker, beside the map of another class and that of another image."""
        image, other = self._images[sample], self._other(sample)
        rows = []
        for name, make in makers.items():
            own, foreign = make(image.x, [image.label, other.label]), make(other.x, [other.label])
            if not own or not foreign:
                continue
            controls = {"other_picture": auroc_on(foreign[0], image.frame, image.mask)}
            if other.label != image.label:
                controls["other_class"] = auroc_on(own[1], image.frame, image.mask)
            rows.append(_located(name, own[0], image.frame, image.mask) | controls)
        return rows

    def case(self, row: Row) -> BenchmarkCase:
        """Return an image with its class."""
        image = self._images[row["sample"]]
        return BenchmarkCase(image.x, image.label)

    def _other(self, sample: int) -> MaskedImage:
        """Return the next image of another class, or the next of all."""
        following = [*self._images[sample + 1 :], *self._images[:sample]]
        others = [item for item in following if item.label != self._images[sample].label]
        return (others or following or [*self._images])[0]


class SpecimenTask:
    """Maps of drawn specimens held against what the logit loses when a part is not drawn (Hesse et al.
    2023).
    """

    name = SPECIMENS

    def __init__(self, backend: Backend, specimens: Sequence[SpecimenParts], *, costly_share: int) -> None:
        self.costly_share = costly_share
        self._backend, self._specimens = backend, specimens

    def __len__(self) -> int:
        """Return the number of specimens."""
        return len(self._specimens)

    def measure(self, sample: int, makers: Mapping[str, MapMaker]) -> list[Row]:
        """Return four figures of each maker.

        ``parts``: rank correlation of the parts' shares of the evidence with their losses. ``ignored``: AUROC
        of the places of parts that the score rests on against those of the others. ``contrast``: on a
        specimen with two species' marks, the AUROC of each class's map between its own and the other's.
        ``completeness``: loss without the part that the map ranks first, of the largest loss.
        """
        specimen = self._specimens[sample]
        classes = self._backend.model.classes
        own, other = classes.index(specimen.species), classes.index(specimen.other)
        x, frame = self._input(specimen.image)
        two, two_frame = self._input(specimen.two_marks)
        losses = self._losses(x, specimen, own)
        rows = []
        for name, make in makers.items():
            maps, contrasted = make(x, [own]), make(two, [own, other])
            if maps and contrasted:
                row = _by_parts(maps[0], frame, specimen, losses)
                row["contrast"] = _contrast(contrasted, two_frame, specimen.two_masks)
                rows.append({"candidate": name} | row)
        return rows

    def case(self, row: Row) -> BenchmarkCase:
        """Return a specimen with its species."""
        specimen = self._specimens[row["sample"]]
        return BenchmarkCase(
            self._input(specimen.image)[0], self._backend.model.classes.index(specimen.species)
        )

    def _input(self, image: PIL.Image.Image) -> tuple[Tensor, Frame]:
        x, frame = self._backend.model.geometry.prepare(image_from_array(np.asarray(image)))
        return x, frame

    def _losses(self, x: Tensor, specimen: SpecimenParts, own: int) -> np.ndarray:
        """Return what the logit of the species loses without each part."""
        without = [self._input(part.without)[0] for part in specimen.parts.values()]
        logits = to_numpy(predict_logits(self._backend, torch.stack([x, *without])).double())[:, own]
        return np.asarray(logits[0] - logits[1:])


def predicted_class(backend: Backend, x: Tensor) -> int:
    """Return the class that a model is surest of for an image (3, H, W)."""
    return int(run_forward(backend.model, x[None], backend=backend).logits.argmax())


def _located(name: str, values: np.ndarray, frame: Frame, mask: np.ndarray) -> Row:
    result = localize(values, frame, mask)
    assert result is not None
    return {"candidate": name} | asdict(result)


def _by_parts(values: np.ndarray, frame: Frame, specimen: SpecimenParts, losses: np.ndarray) -> Row:
    divided = [cell_areas(frame, part.mask, values.shape) for part in specimen.parts.values()]
    areas, whole = np.stack([inside for inside, _ in divided]), np.add(*divided[0])
    sums = (values * areas / np.maximum(whole, 1.0)).sum((1, 2))
    largest = float(losses.max())
    counts = losses > _COUNTS * largest
    return {
        "parts": rank_correlation(sums, losses),
        "ignored": auroc(values, areas[counts].sum(0), areas[~counts].sum(0)),
        "completeness": max(float(losses[sums.argmax()]), 0.0) / largest if largest > 0 else float("nan"),
    }


def _contrast(maps: Sequence[np.ndarray], frame: Frame, masks: tuple[np.ndarray, np.ndarray]) -> float:
    own, other = masks
    between = own | other
    shares = []
    for values, mask in zip(maps, (own, other), strict=True):
        inside, _ = cell_areas(frame, mask, values.shape)
        outside, _ = cell_areas(frame, between & ~mask, values.shape)
        shares.append(auroc(values, inside, outside))
    return float(np.mean(shares))
