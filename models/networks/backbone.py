"""What is known of a network besides its weights: how it is built, cut into blocks, explained and fed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from models.images.geometry import Geometry
from models.networks.block_discovery import DiscoveredBlocks
from models.networks.cutting import WHOLE, Cut, cut_network
from models.networks.layouts import MAPS, Layout
from models.networks.state_dicts import FittedState, fit_state_dict, read_state_dict

Pretraining = Literal["imagenet", "none"]


@dataclass(frozen=True, slots=True)
class Backbone:
    """A network that can be fine-tuned and explained."""

    name: str
    build: Callable[[int], nn.Module]
    """The uncut network with that many outputs and random weights."""
    blocks: Mapping[str, str]
    """Patterns of the paths of modules that end a block, to the blocks' names."""
    pretrained: Callable[[], Mapping[str, Tensor]]
    """State dict for the network with its own classes; raises WeightsUnavailable."""
    cam_block: str
    """The block whose output Grad-CAM reads unless told otherwise."""
    top_block: str
    """The lowest block that fine-tuning's phase "top blocks" unfreezes unless told otherwise."""
    geometry: Callable[[], Geometry]
    """The preprocessing that the pretrained weights were made with."""
    classifier: Callable[[int], nn.Module] | None = None
    """A new classifier for that many classes, to follow the cut's pool; None takes the network's own."""
    outputs: int = 1000
    """Classes of the pretrained weights."""
    layout: Layout = MAPS
    """How the blocks' values are read as maps, where ``layouts`` says nothing else."""
    layouts: Mapping[str, Layout] = field(default_factory=dict)
    """Of single blocks."""
    known_by_name: bool = True
    """Whether its name says how to build it again, so that a bundle can hold it."""
    description: Mapping[str, Any] = field(default_factory=dict)
    """What a bundle must keep besides the name, so that the network can be built again."""
    program: bytes | None = field(default=None, repr=False)
    """The network as a program of torch.export, where nothing else says how to build it."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Beginnings of weights' names in older bundles, to those of today."""

    @property
    def is_exported(self) -> bool:
        """Whether what is cut is a program of torch.export, in which functions are no modules."""
        return self.program is not None or bool(self.description.get("by_export"))

    def layout_of(self, block: str) -> Layout:
        """Return how a block's value is read as a map."""
        return self.layouts.get(block, self.layout)

    def cut(self, network: nn.Module) -> Cut:
        """Cut the uncut network behind the modules that end its blocks; raises NetworkNotTraceable."""
        ends = {WHOLE: WHOLE} if WHOLE in self.blocks else {}
        for path, _ in network.named_modules():
            for pattern, name in self.blocks.items():
                if match := re.fullmatch(pattern, path):
                    ends[path] = match.expand(name)
        geometry = self.geometry()
        device = next(network.parameters()).device
        x = torch.zeros(1, 3, geometry.crop_height, geometry.crop_width, device=device)
        return cut_network(network, ends, x)

    def block_names(self) -> tuple[str, ...]:
        """Return the names of the blocks, from the input up."""
        return tuple(self.cut(self.outline()).blocks)

    def outline(self) -> nn.Module:
        """Return the uncut network without memory for its weights, for its shapes alone."""
        return build_outline(lambda: self.build(self.outputs))

    def network(self, pretraining: Pretraining = "imagenet", outputs: int | None = None) -> nn.Module:
        """Build the uncut network in eval mode; ``pretraining="none"`` leaves its weights random.

        With another number of ``outputs`` a network whose classifier is its own gets one for so many, which
        stays random; otherwise the row's ``classifier`` follows the cut's pool.
        """
        if outputs is None or self.classifier is not None:
            outputs = self.outputs
        network = self.build(outputs)
        if pretraining == "imagenet":
            state = self.pretrained()
            if outputs != self.outputs:
                state = self._fitted(network, state).state
            network.load_state_dict(state, strict=True)
        return network.eval()

    def network_from_file(self, path: Path, outputs: int) -> tuple[nn.Module, tuple[str, ...]]:
        """Build the uncut network with the weights of a file, and say what was mended.

        Its classifier's weights are taken where they are for as many classes. Raises ConfigError for a file
        that is none of weights, or does not fit.
        """
        state, unwrapped = read_state_dict(path)
        network = self.network("none", outputs)
        fitted = self._fitted(network, state)
        network.load_state_dict(fitted.state, strict=True)
        return network, (*unwrapped, *fitted.notes)

    def _fitted(self, network: nn.Module, state: Mapping[str, Tensor]) -> FittedState:
        """Return weights that the network loads, its own classifier's where theirs is for other classes."""
        own = {id(value) for value in self.cut(network).classifier.state_dict(keep_vars=True).values()}
        names = [key for key, value in network.state_dict(keep_vars=True).items() if id(value) in own]
        return fit_state_dict(network, state, replaceable=names)


def discovered_backbone(
    name: str,
    build: Callable[[int], nn.Module],
    geometry: Callable[[], Geometry],
    blocks: DiscoveredBlocks,
    **more: Any,
) -> Backbone:
    """Return the backbone of a network whose blocks were found by its graph; ``more`` are other fields."""
    return Backbone(
        name=name,
        build=build,
        blocks={re.escape(block): block for block in blocks.names},
        pretrained=more.pop("pretrained", dict),
        cam_block=blocks.cam_block,
        top_block=blocks.top_block,
        geometry=geometry,
        layouts=blocks.layouts,
        **more,
    )


def build_outline(build: Callable[[], nn.Module]) -> nn.Module:
    """Return what ``build`` builds, in eval mode and without memory for its weights."""
    try:
        with torch.device("meta"):
            return build().eval()
    except RuntimeError:
        # Some compute their widths with tensors, which need memory to be read.
        return build().eval().to("meta")
