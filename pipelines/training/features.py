"""What the frozen part passes up, computed once: several views of each training image, one of each other.

Nothing below the lowest boundary of all phases ever changes, so its outputs are cached; a phase that starts
higher only runs the blocks between. An epoch of the head then costs a thousandth of one through the whole
network.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version

import numpy as np
import torch
from torch import Tensor

from models.devices import CPU, describe_device, run_in_parts, to_device, to_host
from models.networks.batchnorm_folding import frozen_prefix
from models.networks.transfer_model import HEAD, TransferModel
from pipelines.config.schema import TrainConfig
from pipelines.data.augmentation import Augmenter, read_batches
from pipelines.data.dataset import Dataset, Sample
from pipelines.progress import Reporter
from pipelines.training.feature_cache import CachedFeatures, FeatureCache, make_key

_CHUNK = 64


def count_frozen_blocks(model: TransferModel, train_from: str) -> int:
    """Return how many blocks lie below what is trained."""
    return len(model.block_names) if train_from == HEAD else model.index_of(train_from)


def encode_targets(data: Dataset, samples: Sequence[Sample]) -> Tensor:
    """Return (N, classes) float32: 1 where the class holds."""
    targets = torch.zeros(len(samples), len(data.classes))
    for row, sample in zip(targets, samples, strict=True):
        row[list(sample.labels)] = 1.0
    return targets


class Features:
    """The cached outputs of a run's frozen blocks.

    A set too large for the disk budget gets fewer views, and then none: its images run through the frozen
    part again in each epoch.
    """

    def __init__(
        self,
        model: TransferModel,
        data: Dataset,
        config: TrainConfig,
        store: FeatureCache,
        reporter: Reporter,
    ) -> None:
        """Run the frozen blocks over every validation image and every view that fits, or find them in the
        store.
        """
        self.model, self.data, self.config, self.store = model, data, config, store
        self.augmenter = Augmenter(model.geometry, config.augmentation, seed=config.seed)
        self.targets, self.val_targets = encode_targets(data, data.train), encode_targets(data, data.val)
        self.lowest = min(count_frozen_blocks(model, phase.train_from) for phase in config.phases)
        self._shape = self._row_shape(self.lowest)
        row_bytes = 4 * int(np.prod(self._shape))
        # The higher boundary of a later phase needs a copy of its own beside the lowest one's.
        levels = len(
            {count_frozen_blocks(model, phase.train_from) for phase in config.phases} | {self.lowest}
        )
        room = store.room(row_bytes * levels, len(data.train) + len(data.val))
        self.cached = room >= 1
        self.views = min(config.views, int(room)) if self.cached else 0
        self._weights = self._digest(0, self.lowest)
        self._below = frozen_prefix(model, self.lowest)
        # View 0 is the picture as it is served, with all that a mitigation takes away.
        self._first_view = 0 if self.augmenter.mitigation is None else 1
        self.train = [
            self._base(data.train, self._first_view + view, "training features", reporter)
            for view in range(self.views)
        ]
        self.val = self._base(data.val, 0, "validation features", reporter) if self.cached else None

    def at(self, train_from: str, *, views: int | None = None) -> PhaseFeatures:
        """Return the features at a phase's boundary, from the model's present weights below it; at most that
        many views.
        """
        level = count_frozen_blocks(self.model, train_from)
        self.model.eval()
        if not self.cached or level == self.lowest:
            return PhaseFeatures(self, level, self.train, self.val, own=False)
        digest = self._digest(self.lowest, level)
        return PhaseFeatures(
            self,
            level,
            [
                self._raised(base, view, "train", level, digest)
                for view, base in enumerate(self.train[:views], start=self._first_view)
            ],
            self._raised(self.val, 0, "val", level, digest) if self.val is not None else None,
            own=True,
        )

    # ------------------------------------------------------------ computing and keeping

    def _base(self, samples: Sequence[Sample], view: int, what: str, reporter: Reporter) -> CachedFeatures:
        label = (
            f"{what}, view {view + 1 - self._first_view} of {self.views}"
            if samples is self.data.train
            else what
        )

        def fill(put: Callable[[int, Tensor], None]) -> None:
            done = 0
            for rows in self.stream(samples, [view] * len(samples), self.lowest):
                put(done, to_host(rows))
                done += len(rows)
                reporter.step(label, done, len(samples))

        stored = self.store.get(self._key(samples, view, self.lowest), (len(samples), *self._shape), fill)
        reporter.step(label, len(samples), len(samples))
        return stored

    def _raised(self, base: CachedFeatures, view: int, split: str, level: int, digest: str) -> CachedFeatures:
        samples = self.data.samples(split)

        def fill(put: Callable[[int, Tensor], None]) -> None:
            for start in range(0, len(base), _CHUNK):
                rows = to_channels_last(base.rows(slice(start, start + _CHUNK)))
                put(start, to_host(self.model.raise_to(rows, level, start=self.lowest)))

        key = self._key(samples, view, level, between=digest)
        return self.store.get(key, (len(samples), *self._row_shape(level)), fill)

    def stream(self, samples: Sequence[Sample], views: Sequence[int], level: int) -> Iterator[Tensor]:
        """Yield batches at a level, computed from the images."""
        self.model.eval()
        for x in read_batches(self.augmenter, samples, views, self.config.batch_size):
            with torch.no_grad():
                rows = run_in_parts(self._run_below, to_channels_last(x))
            if level > self.lowest:
                rows = self.model.raise_to(rows, level, start=self.lowest)
            elif level == len(self.model.block_names):
                rows = self.model.pool(rows)
            yield rows

    def _run_below(self, x: Tensor) -> Tensor:
        below: Tensor = self._below(to_device(x, self.model.device))
        return below

    def _row_shape(self, level: int) -> tuple[int, ...]:
        geometry = self.model.geometry
        image = torch.zeros(1, 3, geometry.crop_height, geometry.crop_width)
        return tuple(self.model.raise_to(image, level).shape[1:])

    def _digest(self, start: int, stop: int) -> str:
        """Hash the weights and statistics of the blocks between."""
        digest = hashlib.sha256()
        for name in self.model.block_names[start:stop]:
            for key, value in self.model.block(name).state_dict().items():
                digest.update(key.encode() + to_host(value.contiguous()).numpy().tobytes())
        return digest.hexdigest()

    def _key(self, samples: Sequence[Sample], view: int, level: int, *, between: str = "") -> str:
        """Return all that decides a feature's bits; batch size, threads and device are among it."""
        varied = {"policy": asdict(self.config.augmentation), "seed": self.config.seed} if view else {}
        if view and self.augmenter.mitigation is not None:
            varied["mitigation"] = self.augmenter.mitigation.digest
        return make_key(
            {
                "format": 2,
                "versions": {name: version(name) for name in ("torch", "torchvision", "pillow")},
                "backbone": self.model.backbone.name,
                "geometry": self.model.geometry.to_dict(),
                "weights": [self._weights, between],
                "blocks": [self.lowest, level],
                "view": view,
                "varied": varied,
                "pictures": [sample.sha256 for sample in samples],
                "batch": self.config.batch_size,
                "threads": torch.get_num_threads(),
                **({} if self.model.device == CPU else {"device": describe_device(self.model.device)}),
            }
        )


@dataclass(frozen=True)
class PhaseFeatures:
    """Features at one phase's boundary; batches come ready for the trainable rest."""

    source: Features
    level: int
    train: list[CachedFeatures]
    """One for each cached view; none when the images run through the frozen part in each epoch."""
    val: CachedFeatures | None
    own: bool
    """Whether this phase alone holds them."""

    @property
    def pictures(self) -> int:
        """How many training images an epoch has."""
        return len(self.source.data.train)

    def epoch(self, number: int, order: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (features, targets) of every training image once, in batches, each image in a view that
        changes from epoch to epoch.
        """
        size = self.source.config.batch_size
        if not self.train:
            samples = [self.source.data.train[i] for i in order]
            rows = self.source.stream(samples, [number + 1] * len(order), self.level)
            for start, x in zip(range(0, len(order), size), rows, strict=True):
                yield to_channels_last(x), self.source.targets[order[start : start + size]]
            return
        views = (number + np.arange(len(order))) % len(self.train)
        for start in range(0, len(order), size):
            chosen, their_views = order[start : start + size], views[start : start + size]
            x = torch.empty(len(chosen), *self.train[0].shape[1:])
            for view in np.unique(their_views):
                places = np.flatnonzero(their_views == view)
                x[places] = self.train[view].rows(chosen[places])
            yield to_channels_last(x), self.source.targets[chosen]

    def validation(self) -> Iterator[Tensor]:
        """Yield every validation image once, in order, in batches."""
        if self.val is None:
            data = self.source.data.val
            yield from map(to_channels_last, self.source.stream(data, [0] * len(data), self.level))
            return
        for start in range(0, len(self.val), _CHUNK):
            yield to_channels_last(self.val.rows(slice(start, start + _CHUNK)))

    def release(self) -> None:
        """Give back the memory that this phase alone needed."""
        if self.own:
            for stored in [*self.train, *([self.val] if self.val is not None else [])]:
                self.source.store.release(stored)


def to_channels_last(x: Tensor) -> Tensor:
    """Return maps in the layout that the model computes in; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
