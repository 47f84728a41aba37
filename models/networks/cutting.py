"""A network cut into an ordered list of named blocks, a pool and a classifier, by the graph of its forward.

The graph may be cut wherever exactly one value that depends on the input is alive. Each piece is made of the
network's own modules, so that running the blocks and then the head gives bit-equal logits, and training them
trains the network.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.errors import NetworkNotTraceable
from models.networks.tracing import BATCH_SIZE, called_modules, cut_points, trace_network

WHOLE = "network"
"""Name of the one block of a network that can be cut nowhere."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A network as named blocks, a pooling without parameters, and a classifier; the last two are its
    head.
    """

    blocks: Mapping[str, nn.Module]
    pool: nn.Module
    classifier: nn.Module


def cut_network(network: nn.Module, ends: Mapping[str, str], x: Tensor) -> Cut:
    """Cut a network behind the modules at the paths that are the keys of ``ends``; the values name blocks.

    ``x`` (N, 3, H, W) is an example on the network's device. What follows a block and keeps its shape without
    mixing channels or positions (a norm, an activation) belongs to it; what changes the shape (a pooling)
    opens the next. What follows the last block is the head. A network that can be cut nowhere is one block,
    named ``WHOLE``, whose value is the logits.

    Raises NetworkNotTraceable where another value is alive behind one of the modules.
    """
    if set(ends) == {WHOLE}:
        return Cut({WHOLE: network}, nn.Sequential(), nn.Sequential())
    opened = {parent for path in ends for parent in _parents(path)}
    opened |= _opened_tail(network, opened, x, ends)
    steps = graph_steps(network, opened, x)
    blocks: dict[str, nn.Module] = {}
    start = 0
    for path, name in _in_order(steps, ends):
        stop = _end_of_block(steps, path, ends)
        if not steps[stop - 1].untouched:
            raise NetworkNotTraceable(f"The value behind {path!r} is changed in place later.")
        blocks[name] = _chain([step.module() for step in steps[start:stop]])
        start = stop
    pool, classifier = _split_head(steps[start:])
    return Cut(blocks, pool, classifier)


@dataclass(frozen=True)
class Step:
    """A piece of the graph between two neighbouring points where it may be cut."""

    network: nn.Module
    nodes: tuple[fx.Node, ...]
    """In their order; the last one's value is what the next step takes."""
    start: fx.Node
    """Whose value it takes."""
    shape: tuple[int, ...]
    """Of the value that it gives, with the batch."""
    before: tuple[int, ...]
    """Shape of the value that it takes."""
    untouched: bool
    """Whether nothing later changes the value in place, so that it may be kept."""

    @property
    def keeps_shape(self) -> bool:
        """Whether the value that it gives has the shape of the one that it takes."""
        return self.shape == self.before

    @property
    def keeps_count(self) -> bool:
        """Whether it gives as many numbers as it takes."""
        return math.prod(self.shape) == math.prod(self.before)

    @property
    def path(self) -> str | None:
        """Path of the module whose output is the step's value; None for a function."""
        last = self.nodes[-1]
        return str(last.target) if last.op == "call_module" else None

    @property
    def modules(self) -> dict[str, nn.Module]:
        """The modules that it runs, by their paths."""
        called = (str(node.target) for node in self.nodes if node.op == "call_module")
        return {path: self.network.get_submodule(path) for path in called}

    @property
    def mixers(self) -> int:
        """How many layers mix channels or positions by weights."""
        return sum(count_mixers(module) for module in self.modules.values())

    @property
    def drops(self) -> bool:
        """Whether a dropout is in it."""
        dropout = nn.modules.dropout._DropoutNd
        return any(isinstance(part, dropout) for module in self.modules.values() for part in module.modules())

    def module(self) -> nn.Module:
        """Return the step as a module: the network's own, or a graph of it."""
        last = self.nodes[-1]
        if (
            len(self.nodes) == 1
            and last.op == "call_module"
            and last.args == (self.start,)
            and not last.kwargs
        ):
            return self.network.get_submodule(str(last.target))
        graph = fx.Graph()
        x = graph.placeholder("x")
        copies = {self.start: x}
        for node in self.nodes:
            copies[node] = graph.node_copy(node, lambda other: _copied(other, copies, graph, x))
        graph.output(copies[last])
        return fx.GraphModule(self.network, graph)


def count_mixers(module: nn.Module) -> int:
    """Count the layers within a module that have weights of two axes or more: convolutions, linear layers."""
    return sum(any(p.ndim >= 2 for p in part.parameters(recurse=False)) for part in module.modules())


def graph_steps(network: nn.Module, opened: Collection[str], x: Tensor) -> list[Step]:
    """Return the steps of a network in which the modules at the paths ``opened`` are taken apart.

    Each ends with a tensor of the batch. Raises NetworkNotTraceable.
    """
    traced = trace_network(network, opened, x)
    points = set(cut_points(traced.graph))
    run = _Run(traced)
    try:
        with torch.no_grad():
            run.run(x)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if isinstance(error, AssertionError):
            # torchvision's vision transformers; what they got has no value while they are traced.
            reason = f"it was built for another size ({reason.partition(' but got')[0]})"
        raise NetworkNotTraceable(
            f"{type(network).__name__} cannot be run on a picture of {x.shape[3]} x {x.shape[2]}: {reason}"
        ) from error
    needed = _needed(traced.graph)
    steps, waiting = [], list[fx.Node]()
    start, shape = next(iter(traced.graph.nodes)), tuple(x.shape)
    for node in traced.graph.nodes:
        # A weight's node is copied to whatever reads it.
        if node.op in {"placeholder", "output", "get_attr"} or node not in needed:
            continue
        waiting.append(node)
        after = run.shapes.get(node, ())
        if (node in points and len(after) >= 2 and after[0] == len(x)) or node is needed[-1]:
            untouched = run.is_untouched(node)
            steps.append(Step(network, tuple(waiting), start, after, shape, untouched))
            start, shape, waiting = node, after, []
    return steps


class _Run(fx.Interpreter):
    """A run of a graph that remembers the shape of each value, and notices which are changed in place."""

    def __init__(self, traced: fx.GraphModule) -> None:
        super().__init__(traced, garbage_collect_values=False)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self._versions: dict[fx.Node, tuple[Tensor, int]] = {}

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        """Return a node's arguments; lists as lists, for a module may write to the one that it is given."""
        return _with_lists(super().fetch_args_kwargs_from_env(n))

    def run_node(self, n: fx.Node) -> object:
        """Run a node and take note of its value."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = tuple(value.shape)
            self._versions[n] = (value, value._version)
        return value

    def is_untouched(self, node: fx.Node) -> bool:
        """Return whether nothing changed a value after it was made."""
        value, version = self._versions[node]
        return value._version == version


def _with_lists(value: Any) -> Any:
    # Exactly these: what is derived from them may have attributes of its own.
    if type(value) is tuple:
        return tuple(map(_with_lists, value))
    if type(value) is dict:
        return {key: _with_lists(item) for key, item in value.items()}
    return [_with_lists(item) for item in value] if isinstance(value, list) else value


def _needed(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that the output follows from, in their order; the last gives the output."""
    needed, waiting = set[fx.Node](), [next(iter(reversed(graph.nodes)))]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return [node for node in graph.nodes if node in needed and node.op != "output"]


def _copied(node: fx.Node, copies: dict[fx.Node, fx.Node], graph: fx.Graph, x: fx.Node) -> fx.Node:
    """Return a node's copy in a step's graph; the size of the batch and constants are made anew there."""
    if node not in copies:
        if node.meta.get(BATCH_SIZE):
            copies[node] = graph.call_method("size", (x, 0))
        elif node.op == "placeholder":
            copies[node] = x
        else:
            copies[node] = graph.node_copy(node, lambda other: _copied(other, copies, graph, x))
    return copies[node]


# ---------------------------------------------------------------- blocks and head


def _parents(path: str) -> list[str]:
    """Return the paths of the modules around one, from the outermost."""
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def _in_order(steps: Sequence[Step], ends: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return (path, name) of each end in the order of the forward."""
    places = {step.path: place for place, step in enumerate(steps) if step.path is not None}
    if missing := [path for path in ends if path not in places]:
        raise NetworkNotTraceable(
            f"The network cannot be cut behind {missing[0]!r}: another value is still needed there, or it "
            "has no such module."
        )
    return sorted(ends.items(), key=lambda item: places[item[0]])


def _end_of_block(steps: Sequence[Step], path: str, ends: Mapping[str, str]) -> int:
    """Return the position behind a block: its end, and what follows it and belongs to it."""
    stop = 1 + next(place for place, step in enumerate(steps) if step.path == path)
    while stop < len(steps) and belongs_to_block_before(steps[stop]) and steps[stop].path not in ends:
        stop += 1
    return stop


def belongs_to_block_before(step: Step) -> bool:
    """Return whether a step keeps the shape of a map and mixes nothing: a norm or an activation."""
    return step.keeps_shape and step.mixers == 0 and not step.drops and is_spatial(step.shape)


def is_spatial(shape: Sequence[int]) -> bool:
    """Return whether a value's shape may have positions: (N, C, H, W), (N, H, W, C) or (N, tokens, C)."""
    return len(shape) in (3, 4) and math.prod(shape[1:]) > max(shape[1:])


def _opened_tail(network: nn.Module, opened: set[str], x: Tensor, ends: Mapping[str, str]) -> set[str]:
    """Return the modules behind the last block that can be taken apart, so that the pool is seen in them."""
    calls = called_modules(trace_network(network, opened, x))
    last = max((place for place, path in enumerate(calls) if path in ends), default=-1)
    waiting, more = calls[last + 1 :], set[str]()
    while waiting:
        path = waiting.pop()
        if any(True for _ in network.get_submodule(path).children()):
            try:
                inner = called_modules(trace_network(network, opened | more | {path}, x))
            except NetworkNotTraceable:
                continue
            more.add(path)
            waiting += [name for name in inner if name.startswith(f"{path}.")]
    return more


def _split_head(steps: Sequence[Step]) -> tuple[nn.Module, nn.Module]:
    """Return (pool, classifier): what comes before the first weights, without dropouts, and the rest.

    A dropout and a flattening behind it change places, which changes nothing.
    """
    pool, classifier = list[nn.Module](), list[nn.Module]()
    for step in steps:
        module = step.module()
        flattens = step.mixers == 0 and not any(True for _ in module.parameters()) and step.keeps_count
        if (
            (classifier and not (flattens and all(map(_is_dropout, classifier))))
            or step.drops
            or (any(True for _ in module.parameters()))
        ):
            classifier.append(module)
        else:
            pool.append(module)
    return _chain(pool), _chain(classifier)


def _is_dropout(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.dropout._DropoutNd)


def _chain(modules: Sequence[nn.Module]) -> nn.Module:
    """Return modules as one: themselves where there is only one."""
    return modules[0] if len(modules) == 1 else nn.Sequential(*modules)
