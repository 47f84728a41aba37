"""The blocks of a network that nobody described: which modules end them, and how each is read as a map.

Networks are built from series of like modules (residual blocks, encoder layers, stages of these). Such series
are taken apart as long as the graph can be cut between their members; what cannot be cut inside stays whole.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from models.errors import NetworkNotTraceable
from models.networks.cutting import (
    WHOLE,
    Cut,
    Step,
    belongs_to_block_before,
    count_mixers,
    cut_network,
    graph_steps,
    is_spatial,
)
from models.networks.layouts import CHANNELS_LAST, MAPS, NO_MAP, Layout
from models.networks.tracing import called_modules, cut_points, trace_network

_SERIES = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
_FEWEST_POSITIONS = 16
"""Of a Grad-CAM map, where an earlier block has more; 4 x 4 still says which quarter."""
_TOP_SHARE = 0.6
"""Of the weights of all blocks, the most that the phase "top blocks" trains unless told otherwise."""
_MOST_PREFIX = 16
Grid = tuple[int, int]
_PLANTED = ((0.15, 0.4), (0.4, 0.15), (0.35, 0.85), (0.6, 0.6), (0.85, 0.35), (0.8, 0.85))
"""Places of the planted test, as shares of height and width; mirrored or turned, none falls on another."""
_FEWEST_PLACED = 3
"""Of the planted places, how many must change the map where they belong; one more may change it elsewhere."""


@dataclass(frozen=True, slots=True)
class DiscoveredBlocks:
    """The blocks of a network."""

    names: tuple[str, ...]
    """Paths of the modules that end them, from the input up."""
    layouts: dict[str, Layout]
    cam_block: str
    """The last block whose map has every position reach the logits; the last of all where none has a map."""
    top_block: str


def discover_blocks(network: nn.Module, x: Tensor) -> DiscoveredBlocks:
    """Find the blocks of a network in eval mode, with ``x`` (1, 3, H, W) as an example of its input.

    The logits cut and uncut are equal to the bit, or it is refused. Raises NetworkNotTraceable.
    """
    steps = graph_steps(network, _open_series(network, x), x)
    names = _block_ends(steps)
    network = _with_statistics(network, x)
    cut = cut_network(network, {name: name for name in names or [WHOLE]}, x)
    return _describe(network, cut, x)


def _with_statistics(network: nn.Module, x: Tensor) -> nn.Module:
    """Return a network that was never trained as a copy whose BatchNorms know the signals of random inputs.

    Without them the signals of a deep network grow until its attention sees a single place.
    """
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if not norms or any(norm.num_batches_tracked is None or norm.num_batches_tracked > 0 for norm in norms):
        return network
    network = copy.deepcopy(network)
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train().momentum = None
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        network(torch.randn((4, *x.shape[1:]), generator=generator).to(x.device))
    return network.eval()


# ---------------------------------------------------------------- which modules end a block


def _open_series(network: nn.Module, x: Tensor) -> frozenset[str]:
    """Return the modules to take apart: those that hold a series which the graph can be cut within."""
    opened: frozenset[str] = frozenset()
    for path in called_modules(trace_network(network, opened, x)):
        opened = _open(network, path, opened, x)
    return opened


def _open(network: nn.Module, path: str, opened: frozenset[str], x: Tensor) -> frozenset[str]:
    """Return ``opened`` with a module and what is opened within it; as it is where that brings no cut."""
    if not _holds_series(network.get_submodule(path)):
        return opened
    wider = opened | {path}
    try:
        inner = [
            call for call in called_modules(trace_network(network, wider, x)) if call.startswith(f"{path}.")
        ]
        for call in inner:
            wider = _open(network, call, wider, x)
        traced = trace_network(network, wider, x)
    except NetworkNotTraceable:
        return opened
    points = set(cut_points(traced.graph))
    ends = [node for node in traced.graph.nodes if _is_call_within(node, path)]
    fewest = 1 if _is_plain_series(network.get_submodule(path)) else 2
    if any(
        node in points and count_mixers(network.get_submodule(str(node.target))) >= fewest
        for node in ends[:-1]
    ):
        return wider
    return opened


def _is_call_within(node: fx.Node, path: str) -> bool:
    return node.op == "call_module" and str(node.target).startswith(f"{path}.")


def _holds_series(module: nn.Module) -> bool:
    """Return whether a series of like modules lies in it, each of which mixes twice or more."""
    return _is_plain_series(module) or any(
        len(kinds := [type(member) for member in part.children() if count_mixers(member) >= 2])
        > len(set(kinds))
        for part in module.modules()
        if _is_series(part)
    )


def _is_series(module: nn.Module) -> bool:
    """Return whether a module is a list of others; in an exported program the names alone say so."""
    if type(module).__module__.startswith("torch.export"):
        return all(name.isdigit() for name, _ in module.named_children())
    return isinstance(module, _SERIES)


def _is_plain_series(module: nn.Module) -> bool:
    """Return whether it is a series of many single layers, as VGG's."""
    own = [part for part in module.children() if count_mixers(part) == 1 and not list(part.children())]
    return _is_series(module) and len(own) > 3


def _block_ends(steps: Sequence[Step]) -> list[str]:
    """Return the paths of the modules that end the blocks.

    A step that mixes twice or more is a block; single layers before the first and behind the last block are
    blocks of their own, those between (a convolution that halves the resolution) open the next one.
    """
    spatial = [step for step in steps if is_spatial(step.shape)]
    large = [place for place, step in enumerate(spatial) if step.mixers >= 2]
    ends: list[str] = []
    for place, step in enumerate(spatial):
        follows = spatial[place + 1] if place + 1 < len(spatial) else None
        between = len(large) > 1 and large[0] < place < large[-1]
        opens_next = between and step.mixers == 1
        changed = not step.untouched and not (follows is not None and belongs_to_block_before(follows))
        if step.mixers >= 1 and step.path is not None and not opens_next and not changed:
            ends.append(step.path)
    return [path for path in ends if ends.count(path) == 1]


# ---------------------------------------------------------------- maps


def _describe(network: nn.Module, cut: Cut, x: Tensor) -> DiscoveredBlocks:
    values = _values_of_planted(cut, x)
    grids = _convolution_grids(network, x)
    layouts = {name: _layout_of(value, x, grids) for name, value in values.items()}
    with torch.no_grad():
        expected = network(x)
    if not torch.equal(_run(cut, x), expected):
        raise NetworkNotTraceable(f"{type(network).__name__} does not give the same logits when it is cut.")
    names = tuple(cut.blocks)
    with_map = [name for name in reversed(names) if layouts[name] is not NO_MAP]
    # A map of few positions is taken only where no block has more.
    by_size = sorted(with_map, key=lambda name: _positions(layouts[name], values[name]) < _FEWEST_POSITIONS)
    reaching = (name for name in by_size if _reaches_head(cut, name, layouts[name], x))
    return DiscoveredBlocks(names, layouts, next(reaching, names[-1]), _top_block(cut))


def _run(cut: Cut, x: Tensor) -> Tensor:
    with torch.no_grad():
        for block in cut.blocks.values():
            x = block(x)
        logits: Tensor = cut.classifier(cut.pool(x))
    return logits


def _values_of_planted(cut: Cut, x: Tensor) -> dict[str, Tensor]:
    """Return each block's values for a plain input and for the same with noise planted at each place."""
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(x.shape, generator=generator) * 0.5
    height, width = x.shape[2:]
    planted = base.repeat(1 + len(_PLANTED), 1, 1, 1)
    for number, (down, right) in enumerate(_PLANTED, start=1):
        y, z = int(down * height), int(right * width)
        size = _planted_size(height)
        noise = torch.randn(3, 2 * size, 2 * size, generator=generator) * 3
        planted[number, :, y - size : y + size, z - size : z + size] += noise
    values = {}
    value = planted.to(x.device)
    with torch.no_grad():
        for name, block in cut.blocks.items():
            value = block(value)
            values[name] = value
    return values


def _convolution_grids(network: nn.Module, x: Tensor) -> list[Grid]:
    """Return (rows, cols) of what the network's own convolutions put out, such as its grid of patches."""
    grids: list[Grid] = []

    def note(module: nn.Module, inputs: object, output: Tensor) -> None:
        grids.append((int(output.shape[-2]), int(output.shape[-1])))

    hooks = [part.register_forward_hook(note) for part in network.modules() if isinstance(part, nn.Conv2d)]
    try:
        with torch.no_grad():
            network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return list(dict.fromkeys(grids))


def _layout_of(values: Tensor, x: Tensor, grids: Sequence[Grid]) -> Layout:
    """Return the layout by which what is planted in the input changes its own place of the map the most."""
    candidates = [layout for layout in _candidates(values, x, grids) if _is_placed(layout, values)]
    return candidates[0] if candidates else NO_MAP


def _token_grids(count: int, x: Tensor, grids: Sequence[Grid]) -> list[Grid]:
    """Return the grids that so many tokens may be: that of a convolution, or one that is coarser by a whole
    number; where no convolution is seen, the one in the input's shape.
    """
    if not grids:
        height, width = x.shape[2:]
        rows = round(math.sqrt(count * height / width))
        fits = rows > 1 and count % rows == 0 and _is_in_shape(rows, count // rows, height, width)
        return [(rows, count // rows)] if fits else []
    own = []
    for rows, cols in grids:
        times = math.isqrt(rows * cols // count)
        if times and rows % times == 0 and cols % times == 0 and rows * cols == count * times**2:
            own.append((rows // times, cols // times))
    return [grid for grid in dict.fromkeys(own) if min(grid) > 1]


def _candidates(values: Tensor, x: Tensor, grids: Sequence[Grid]) -> list[Layout]:
    height, width = x.shape[2:]
    if values.ndim == 4:
        by_shape = [(MAPS, values.shape[2:]), (CHANNELS_LAST, values.shape[1:3])]
        fitting = [layout for layout, (rows, cols) in by_shape if _is_in_shape(rows, cols, height, width)]
        return fitting if values[0].numel() > 1 else []
    if values.ndim != 3:
        return []
    layouts = []
    for prefix in range(min(_MOST_PREFIX, values.shape[1] - 1) + 1):
        count = values.shape[1] - prefix
        if count >= _FEWEST_POSITIONS or not prefix:
            layouts += [
                Layout("tokens", prefix=prefix, rows=rows, cols=cols)
                for rows, cols in _token_grids(count, x, grids)
            ]
    return layouts


def _is_in_shape(rows: int, cols: int, height: int, width: int) -> bool:
    """Return whether a grid has the input's shape, to the rounding of a position."""
    step = max(height / rows, width / cols)
    return (
        1 < rows <= height
        and 1 < cols <= width
        and rows * step - height < step
        and cols * step - width < step
    )


def _planted_size(height: int) -> int:
    """Return half the side of what is planted, in pixels."""
    return max(height // 28, 4)


def _is_placed(layout: Layout, values: Tensor) -> bool:
    """Return whether each planted place, of all planted places, is the one that changes the most with it."""
    grid = layout.to_map(values).double()
    changes = (grid[1:] - grid[:1]).square().sum(1).sqrt()
    rows, cols = changes.shape[1:]
    down = (torch.arange(rows) + 0.5) / rows
    right = (torch.arange(cols) + 0.5) / cols
    half = 1 / 28
    here = []
    for y, x in _PLANTED:
        inside = ((down - y).abs() <= half + 0.5 / rows)[:, None] & ((right - x).abs() <= half + 0.5 / cols)
        here.append(changes[:, inside.to(changes.device)].mean(1))
    by_place = torch.stack(here, dim=1)
    right_place = by_place.argmax(1) == torch.arange(len(_PLANTED), device=by_place.device)
    above_mean = by_place.diagonal() > changes.mean(dim=(1, 2))
    # A place where every unit is silent says nothing.
    changed = int((changes.amax(dim=(1, 2)) > 0).sum())
    return int((right_place & above_mean).sum()) >= max(_FEWEST_PLACED, changed - 1)


def _positions(layout: Layout, values: Tensor) -> int:
    return math.prod(layout.to_map(values).shape[2:])


def _reaches_head(cut: Cut, name: str, layout: Layout, x: Tensor) -> bool:
    """Return whether the logits depend on every position of a block's map."""
    tail = [copy.deepcopy(block) for block in list(cut.blocks.values())[list(cut.blocks).index(name) + 1 :]]
    rest = nn.Sequential(*tail, copy.deepcopy(cut.pool), copy.deepcopy(cut.classifier))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weights in rest.parameters():
            # A fresh head may be all zero, and then nothing would reach it.
            if not weights.any():
                weights.copy_(torch.randn(weights.shape, generator=generator) * 0.02)
        value = x
        for block_name, block in cut.blocks.items():
            value = block(value)
            if block_name == name:
                break
    value = value.detach().clone().requires_grad_()
    with torch.enable_grad():
        logits = rest(value)
        share = torch.randn(logits.shape, generator=generator).to(logits.device)
        (gradient,) = torch.autograd.grad((logits * share).sum(), value)
    reached = layout.to_map(gradient).abs().sum(1) > 0
    return bool(reached.all())


def _top_block(cut: Cut) -> str:
    """Return the lowest block from which up the blocks have at most their share of all weights."""
    names = list(cut.blocks)
    counts = [sum(weights.numel() for weights in block.parameters()) for block in cut.blocks.values()]
    above = [sum(counts[place:]) for place in range(len(counts) + 1)]
    for place, (here, _) in enumerate(pairwise(above)):
        if here <= _TOP_SHARE * above[0] and counts[place]:
            return names[place]
    return names[-1]
