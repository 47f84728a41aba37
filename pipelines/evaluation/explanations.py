"""What a run finds out about its own explanations: which methods depend on what was learnt, and whether the
maps lie on the objects.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import PIL.Image

from models.attribution.allowed import usable_methods
from models.attribution.registry import DEFAULT_METHOD, METHODS
from models.attribution.targets import make_target
from models.explainer import Explainer, ExplainOptions
from models.images.decode import read_image
from models.images.frame import Frame
from models.method_checks import RandomizationCheck
from models.metrics.layer_sweep import stage_ends
from models.metrics.localization import Localization, auroc_on, localize, mean_localization
from models.metrics.randomization import check_randomization
from models.networks.transfer_model import TransferModel
from models.progress import Progress, no_progress
from pipelines.data.dataset import Dataset, Sample
from pipelines.data.listing import MASKS
from pipelines.evaluation.paired import Interval, bootstrap

_CHECK_IMAGES = 3
_MOST_LOCALISED = 200
_BATCH = 16
FINE_METHOD = "hires_cam"
"""What is asked at the stage before the last, whose cells are half as large: Grad-CAM's mean over the
positions says little there."""


@dataclass(frozen=True, slots=True)
class LocalizationResult:
    """The mean over a split's images that have a mask."""

    split: str
    what: str
    """"object", or the folder under masks/ that names the part, such as "mark"."""
    method: str
    block: str
    pictures: int
    mean: Localization
    above: Mapping[str, Interval] = field(default_factory=dict)
    """By control ("spot", "other_class", "other_picture"): how much higher the map's AUROC is than the
    control's on the same pictures."""

    @property
    def name(self) -> str:
        """Of its metrics: split_what, with _fine for the finer map."""
        return f"{self.split}_{self.what}" + ("_fine" if self.method == FINE_METHOD else "")

    def metrics(self) -> dict[str, float]:
        """Return the figures, and how far the AUROC is above each control's."""
        figures = asdict(self.mean) | {f"auroc_above_{name}": gap.value for name, gap in self.above.items()}
        return {f"{self.name}_{key}": value for key, value in figures.items()}


def check_methods(
    model: TransferModel,
    probes: Sequence[Sample],
    which: str,
    *,
    progress: Progress = no_progress,
) -> RandomizationCheck | None:
    """Return the sanity check of a config: of "all" methods, of those that read a "block" and cost little, or
    of "none".
    """
    if which == "none":
        return None
    methods = [name for name in usable_methods(model) if which == "all" or METHODS[name].grid == "block"]
    x = model.geometry.prepare_files(sample.path for sample in probes[:_CHECK_IMAGES])
    return check_randomization(model, x, methods=methods, progress=progress)


Region = Callable[[Sample, tuple[int, int]], np.ndarray | None]
"""(sample, size) to a mask of that (width, height), True inside; None for a sample without one."""


def measure_localization(
    model: TransferModel, data: Dataset, split: str, *, progress: Progress = no_progress
) -> list[LocalizationResult]:
    """Hold the evidence for the true class against the objects' masks or, where there is none, boxes, and
    against every tree of masks of parts that the set has, at the Grad-CAM block and at the stage before it;
    at most 200 images, chosen by their digests. Empty without masks and boxes, and where no block has a map.
    """
    samples = sorted(data.samples(split), key=lambda sample: sample.sha256)[:_MOST_LOCALISED]
    regions: dict[str, Region] = {"object": partial(object_region, data)}
    regions |= {what: partial(read_mask, tree) for what, tree in part_trees(data).items()}
    masked = {
        what: [sample for sample in samples if region(sample, (sample.width, sample.height)) is not None]
        for what, region in regions.items()
    }
    masked = {what: region_samples for what, region_samples in masked.items() if region_samples}
    # Without a map only the methods that ask the pixels are left, which take minutes for so many.
    if not masked or not model.blocks_with_map:
        return []
    ends = stage_ends(model, model.geometry.prepare_files([samples[0].path]))
    looks = [(DEFAULT_METHOD, model.cam_block)]
    if len(ends) > 1:
        looks.append((FINE_METHOD, ends[-2]))
    explained = list(dict.fromkeys(sample for region_samples in masked.values() for sample in region_samples))
    results: dict[str, list[LocalizationResult]] = {what: [] for what in masked}
    done, total = 0, len(looks) * len(explained)
    for method, block in looks:
        maps: dict[str, _ExplainedSample] = {}
        for sample, own in _explain_samples(model, explained, method, block):
            maps[sample.name] = own
            done += 1
            progress(f"locating evidence, {split}", done, total)
        for what, region_samples in masked.items():
            located = list(_localize_samples(region_samples, maps, regions[what]))
            if located:
                localizations, others = zip(*located, strict=True)
                mean, above = mean_localization(localizations), _above_controls(localizations, others)
                results[what].append(
                    LocalizationResult(split, what, method, block, len(located), mean, above)
                )
    return list(chain.from_iterable(results.values()))


def localization_to_json(located: Sequence[LocalizationResult]) -> str:
    """Return the results as JSON text, for a run's files."""
    return json.dumps(
        [
            {
                "split": result.split,
                "what": result.what,
                "method": result.method,
                "block": result.block,
                "pictures": result.pictures,
                "found": asdict(result.mean),
                "above": {name: asdict(gap) for name, gap in result.above.items()},
            }
            for result in located
        ],
        indent=2,
    )


@dataclass(frozen=True, slots=True)
class _ExplainedSample:
    """The map of an image's true class, and of another class for comparison."""

    frame: Frame
    own: np.ndarray
    other: np.ndarray | None
    """None where there is no other class."""


def _explain_samples(
    model: TransferModel, samples: Sequence[Sample], method: str, block: str
) -> Iterator[tuple[Sample, _ExplainedSample]]:
    explainer, options = Explainer(model), ExplainOptions(method=method, block=block)
    for start in range(0, len(samples), _BATCH):
        batch = samples[start : start + _BATCH]
        images = [explainer.prepare(read_image(sample.path)) for sample in batch]
        targets = [
            [make_target(model.classes, place) for place in (sample.labels[0], _other_class(model, sample))]
            for sample in batch
        ]
        maps = explainer.attribute(images, targets, options=options)
        for sample, image, (own, other) in zip(batch, images, maps, strict=True):
            apart = other.values if other.index != own.index else None
            yield sample, _ExplainedSample(image.frame, own.values, apart)


def _localize_samples(
    samples: Sequence[Sample], maps: Mapping[str, _ExplainedSample], region: Region
) -> Iterator[tuple[Localization, dict[str, float]]]:
    """Yield the result of each sample with the AUROC of its controls, but for one whose mask is empty."""
    for n, sample in enumerate(samples):
        own, following = maps[sample.name], samples[(n + 1) % len(samples)]
        mask = region(sample, (own.frame.width, own.frame.height))
        result = localize(own.own, own.frame, mask) if mask is not None else None
        if mask is None or result is None:
            continue
        controls = {"spot": result.spot}
        if own.other is not None:
            controls["other_class"] = auroc_on(own.other, own.frame, mask)
        if following is not sample:
            controls["other_picture"] = auroc_on(maps[following.name].own, own.frame, mask)
        yield result, controls


def _other_class(model: TransferModel, sample: Sample) -> int:
    """Return a class that is none of a sample's, the same one each time; its own where there is no other."""
    others = [place for place in range(len(model.classes)) if place not in sample.labels]
    return others[int(sample.sha256[:8], 16) % len(others)] if others else sample.labels[0]


def _above_controls(
    results: Sequence[Localization], others: Sequence[Mapping[str, float]]
) -> dict[str, Interval]:
    """Return for each control how much higher the maps' AUROC is, over the samples that have it."""
    gaps = {}
    for name in ("spot", "other_class", "other_picture"):
        differences = np.array(
            [item.auroc - row[name] for item, row in zip(results, others, strict=True) if name in row]
        )
        if len(differences):
            gaps[name] = _mean_interval(differences)
    return gaps


def _mean_interval(values: np.ndarray) -> Interval:
    return bootstrap(lambda chosen: float(values[chosen].mean()), len(values))


def part_trees(data: Dataset) -> dict[str, Path]:
    """Return trees of masks of parts: folders under masks/ that are no split."""
    root = data.root / MASKS
    if not root.is_dir():
        return {}
    tops = {sample.name.split("/")[0] for split in ("train", "val", "test") for sample in data.samples(split)}
    return {
        folder.name: folder
        for folder in sorted(root.iterdir())
        if folder.is_dir() and folder.name not in tops and folder.name.isidentifier()
    }


def object_region(data: Dataset, sample: Sample, size: tuple[int, int]) -> np.ndarray | None:
    """Return the mask of an image's objects, or what its boxes cover."""
    mask = read_mask(data.root / MASKS, sample, size)
    if mask is not None or not sample.labels or sample.name not in data.boxes:
        return mask
    covered = np.zeros((size[1], size[0]), dtype=bool)
    for x0, y0, x1, y1 in data.boxes[sample.name]:
        covered[round(y0) : round(y1), round(x0) : round(x1)] = True
    return covered


def read_mask(tree: Path, sample: Sample, size: tuple[int, int]) -> np.ndarray | None:
    """Return a mask as booleans in the size of its image, which may have been resized since."""
    path = (tree / sample.name).with_suffix(".png")
    if not sample.labels or not path.is_file():
        return None
    image = read_image(path).pil.convert("L")
    if image.size != size:
        image = image.resize(size, PIL.Image.Resampling.BILINEAR)
    mask: np.ndarray = np.asarray(image) > 127
    return mask
