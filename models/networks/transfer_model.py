"""The model of this project: an ordered list of named blocks, then a head.

That one list serves freezing (a prefix), fast fine-tuning (run the frozen prefix once), explanations (run the
blocks up to the cut without autograd, differentiate only the rest) and intermediate activations (the value
after each block).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.devices import run_in_parts, to_device
from models.errors import ConfigError, ExplanationError, UnknownChoice
from models.images.geometry import Geometry, View
from models.networks.backbone import Backbone, Pretraining
from models.networks.layouts import Layout
from models.networks.registry import get_backbone, imagenet_classes
from models.networks.scoring import Scoring, Task, expand_binary

HEAD: Literal["head"] = "head"
"""Name of what follows the last block; freezing up to here leaves only the classifier trainable."""


class TransferModel(nn.Module):
    """A classifier: blocks, pool and classifier, with the class names and the geometry that they were trained
    with.

    Calling it takes (N, 3, H, W) to logits (N, classes).
    """

    def __init__(
        self,
        row: Backbone,
        network: nn.Module,
        *,
        classes: list[str],
        keep_classifier: bool = False,
        task: Task = "multiclass",
    ) -> None:
        """Cut ``network`` by its row and give it a new classifier, or keep its own: for the ImageNet classes,
        and where the row has none to give.

        Raises ConfigError for a binary model that does not have two classes.
        """
        super().__init__()
        if task == "binary" and len(classes) != 2:
            raise ConfigError(
                f"A binary model has two classes, the negative and the positive, not {classes}."
            )
        cut = row.cut(network)
        self.backbone = row
        self.classes = list(classes)
        self.geometry: Geometry = row.geometry()
        self.block_names = tuple(cut.blocks)
        self.cam_block = row.cam_block
        self.blocks = nn.ModuleDict({_key(name): block for name, block in cut.blocks.items()})
        self.pool = cut.pool
        new = None if keep_classifier else row.classifier
        self.classifier = cut.classifier if new is None else new(count_outputs(classes, task))
        self.scoring = Scoring(task)
        self.notes: tuple[str, ...] = ()
        """What was mended when its weights were read from a file."""
        self.frozen_blocks = 0
        self.batch_norm_frozen = False
        # Channels last halves the time of a forward on a CPU; set once, so that every path computes the same
        # bits.
        self.to(memory_format=torch.channels_last)

    @classmethod
    def create(
        cls,
        name: str,
        classes: list[str],
        *,
        pretraining: Pretraining | Path = "imagenet",
        task: Task = "multiclass",
        view: View = "crop",
    ) -> TransferModel:
        """Return a model with a new classifier for these classes, and what it shall see of an image; a path
        names a file of weights. Raises UnknownChoice, WeightsUnavailable or ConfigError.
        """
        row = get_backbone(name)
        outputs = count_outputs(classes, task)
        notes: tuple[str, ...] = ()
        if isinstance(pretraining, Path):
            network, notes = row.network_from_file(pretraining, outputs)
        else:
            network = row.network(pretraining, outputs)
        model = cls(row, network, classes=classes, task=task)
        model.notes = notes
        model.geometry = replace(model.geometry, view=view)
        return model.eval()

    @classmethod
    def imagenet(cls, name: str) -> TransferModel:
        """Return the pretrained network as it is, with its 1,000 ImageNet classes."""
        row = get_backbone(name)
        return cls(row, row.network(), classes=imagenet_classes(), keep_classifier=True).eval()

    # ------------------------------------------------------------ forward, whole and in parts

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 3, H, W) to logits (N, classes)."""
        return self.head(self.run_blocks(x, 0, len(self.block_names)))

    @property
    def device(self) -> torch.device:
        """Where the model computes; what it is given may lie anywhere, what it returns lies there."""
        return next(self.parameters()).device

    def run_blocks(self, x: Tensor, start: int, stop: int) -> Tensor:
        """Run the blocks at positions ``start`` to ``stop - 1``."""
        x = to_device(x, self.device)
        for name in self.block_names[start:stop]:
            x = self.blocks[_key(name)](x)
        return x

    def head(self, x: Tensor) -> Tensor:
        """Map the last block's output to logits (N, classes)."""
        return self.classify(self.pool(x))

    def classify(self, pooled: Tensor) -> Tensor:
        """Return logits (N, classes) from the pooled output of the last block."""
        logits: Tensor = self.classifier(to_device(pooled, self.device))
        return expand_binary(logits) if self.scoring.task == "binary" else logits

    def block(self, name: str) -> nn.Module:
        """Return a block by its name; raises UnknownChoice with the names of all."""
        return self.blocks[_key(self.block_names[self.index_of(name)])]

    def replace_block(self, name: str, block: nn.Module) -> None:
        """Put another module of the same function in a block's place."""
        self.blocks[_key(self.block_names[self.index_of(name)])] = block

    def index_of(self, block: str) -> int:
        """Return position of a block; raises UnknownChoice with the names of all."""
        if block not in self.block_names:
            raise UnknownChoice("block", block, self.block_names)
        return self.block_names.index(block)

    def until(self, block: str, x: Tensor) -> Tensor:
        """Run everything up to and including that block; under ``torch.no_grad`` this costs what a
        prediction does.
        """
        return self.run_blocks(x, 0, self.index_of(block) + 1)

    def after(self, block: str, activation: Tensor) -> Tensor:
        """Return logits from that block's output: ``after(b, until(b, x))`` equals ``self(x)`` to the bit."""
        return self.head(self.run_blocks(activation, self.index_of(block) + 1, len(self.block_names)))

    def walk(self, x: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Yield (block name, its output) along one forward, then ("head", logits)."""
        for position, name in enumerate(self.block_names):
            x = self.run_blocks(x, position, position + 1)
            yield name, x
        yield HEAD, self.head(x)

    @property
    def blocks_with_map(self) -> tuple[str, ...]:
        """Names of the blocks whose values are read as maps."""
        return tuple(name for name in self.block_names if self.layout(name).name != "none")

    def layout(self, block: str) -> Layout:
        """Return how a block's value is read as a map."""
        return self.backbone.layout_of(block)

    def as_map(self, block: str, value: Tensor) -> Tensor:
        """Return a block's value as a map (N, channels, rows, cols), by its layout.

        Raises ExplanationError for a value that is no map, or has a single position.
        """
        layout = self.layout(block)
        grid = layout.to_map(value) if value.ndim > 2 else value
        if layout.name == "none" or grid.ndim != 4 or grid.shape[-1] * grid.shape[-2] < 2:
            raise ExplanationError(
                f"Block {block!r} gives {tuple(value.shape[1:])}, which is no map (channels, rows, cols)."
            )
        return grid

    # ------------------------------------------------------------ freezing

    def freeze_below(self, block: str, *, batch_norm_frozen: bool = True) -> None:
        """Freeze all blocks below ``block`` ("head" freezes them all) and make the rest trainable.

        The frozen prefix keeps its weights and its BatchNorm statistics to the bit, also in train mode: it
        gets no gradient and stays in eval mode. With ``batch_norm_frozen`` the BatchNorm layers of the
        trainable part keep their running statistics too (their scale and shift are still trained), which
        small data sets need.
        """
        self.frozen_blocks = len(self.block_names) if block == HEAD else self.index_of(block)
        self.batch_norm_frozen = batch_norm_frozen
        for position, name in enumerate(self.block_names):
            self.blocks[_key(name)].requires_grad_(position >= self.frozen_blocks)
        self.classifier.requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> TransferModel:
        """Set the mode of the trainable part; what is frozen stays in eval mode."""
        super().train(mode)
        for name in self.block_names[: self.frozen_blocks]:
            self.blocks[_key(name)].eval()
        if self.batch_norm_frozen:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def raise_to(self, x: Tensor, level: int, *, start: int = 0) -> Tensor:
        """Return what ``level`` blocks pass up, without autograd; ``x`` is a batch of images, or what
        ``start`` blocks passed up.

        The level of all blocks includes the pool, which has nothing to train.
        """
        top = len(self.block_names)

        def run(part: Tensor) -> Tensor:
            part = self.run_blocks(part, start, level)
            return self.pool(part) if start < level == top else part

        with torch.no_grad():
            return run_in_parts(run, x)

    def trainable_rest(self, x: Tensor) -> Tensor:
        """Return logits from what the frozen blocks pass up, as :meth:`raise_to` gives it."""
        x = self.run_blocks(x, self.frozen_blocks, len(self.block_names))
        if self.frozen_blocks < len(self.block_names):
            x = self.pool(x)
        return self.classify(x)

    def state_above(self, level: int) -> dict[str, Tensor]:
        """Return weights and buffers of all but the first ``level`` blocks, under the names of the whole
        state.
        """
        below = tuple(f"blocks.{_key(name)}." for name in self.block_names[:level])
        return {key: value for key, value in self.state_dict().items() if not key.startswith(below)}

    def trainable_groups(self) -> list[tuple[str, list[nn.Parameter]]]:
        """Return (name, parameters) of each trainable block from the lowest to the classifier, for rates by
        depth.
        """
        parts = [(name, self.blocks[_key(name)]) for name in self.block_names[self.frozen_blocks :]]
        parts.append((HEAD, self.classifier))
        return [
            (name, params)
            for name, part in parts
            if (params := [p for p in part.parameters() if p.requires_grad])
        ]


def count_outputs(classes: Sequence[str], task: Task) -> int:
    """Return how many outputs a network needs for these classes."""
    return 1 if task == "binary" else len(classes)


def pool_to_vectors(pooled: Tensor) -> Tensor:
    """Return one vector (N, features) for each image from what the head sees; a head that sees maps has
    them averaged.
    """
    return pooled.mean(dim=(2, 3)) if pooled.ndim == 4 else pooled.flatten(1)


def _key(block: str) -> str:
    """Return a block's name as a module name; torch allows no dot in one."""
    return block.replace(".", "_")
