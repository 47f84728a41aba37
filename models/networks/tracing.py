"""The graph of a network's forward, with the modules that shall stay whole as its nodes.

A module that is not opened is one node, whatever its code does: it keeps its train mode, its dropout and its
own control flow. Only the code of the opened modules is traced, by torch.fx (Reed et al. 2022).

While torch.fx traces, it has its hands in every module of the process. Calls of other threads go through
untouched, so that a service can load one model while it answers with another.
"""

from __future__ import annotations

import operator
import threading
from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx, nn

from models.errors import NetworkNotTraceable

_ONE_AT_A_TIME = threading.RLock()

BATCH_SIZE = "batch_size"
"""In a node's meta: it holds how many images the batch has, which every value of the network tells, too."""


def trace_network(network: nn.Module, opened: Collection[str], x: Tensor) -> fx.GraphModule:
    """Return the graph of a network in which the modules at the paths ``opened`` are taken apart.

    ``x`` (N, 3, H, W) is an example. Code that decides by sizes is traced with the example's; the size of
    the batch stays free. Raises NetworkNotTraceable naming what could not be followed.
    """
    errors = []
    for tracer in (_Tracer(opened), _ShapedTracer(opened, x)):
        try:
            with _ONE_AT_A_TIME:
                graph = tracer.trace(network)
        except Exception as error:
            # A network's code may fail in any way when it is given a stand-in for its input.
            errors.append(error)
            continue
        for node in graph.nodes:
            # The values beside the graph would live as long as the blocks that are made of it.
            node.meta.pop("value", None)
        traced = fx.GraphModule(tracer.root, graph)
        _mark_batch_sizes(traced.graph)
        return traced
    reason = str(errors[-1]).strip().splitlines() or [type(errors[-1]).__name__]
    raise NetworkNotTraceable(f"{type(network).__name__} cannot be traced: {reason[0]}") from errors[-1]


def called_modules(traced: fx.GraphModule) -> list[str]:
    """Return the paths of the modules that are nodes of a graph, in the order of their calls."""
    return [str(node.target) for node in traced.graph.nodes if node.op == "call_module"]


def depends_on_input(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose values follow from the input, but for the size of the batch."""
    dependent: set[fx.Node] = set()
    for node in graph.nodes:
        if node.meta.get(BATCH_SIZE):
            continue
        if node.op == "placeholder" or any(other in dependent for other in node.all_input_nodes):
            dependent.add(node)
    return dependent


def cut_points(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes after which exactly one value that depends on the input is still needed: their own."""
    nodes = list(graph.nodes)
    places = {node: place for place, node in enumerate(nodes)}
    dependent = depends_on_input(graph)
    last_use = {node: max((places[user] for user in node.users), default=-1) for node in nodes}
    alive: set[fx.Node] = set()
    points = []
    for place, node in enumerate(nodes):
        if node in dependent and last_use[node] > place:
            alive.add(node)
        alive = {other for other in alive if last_use[other] > place}
        if alive == {node}:
            points.append(node)
    return points


def _mark_batch_sizes(graph: fx.Graph) -> None:
    for node in graph.nodes:
        of_shape = (
            node.target is operator.getitem
            and node.args[1] == 0
            and isinstance(node.args[0], fx.Node)
            and node.args[0].target in (getattr, "size")
            and node.args[0].args[1:] in (("shape",), ())
        )
        by_call = node.target in ("size", torch.ops.aten.sym_size.int) and node.args[1:] == (0,)
        if of_shape or by_call:
            node.meta[BATCH_SIZE] = True


class _Tracer(fx.Tracer):
    """A tracer that opens exactly the modules it is told to."""

    def __init__(self, opened: Collection[str]) -> None:
        super().__init__()
        self.opened = opened
        self._thread = threading.get_ident()
        self.computing = False
        """Whether a value is computed beside the graph."""

    def _lets_through(self) -> bool:
        return self.computing or threading.get_ident() != self._thread

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        """Make a module's node, or trace what is in it."""
        return (
            forward(*args, **kwargs)
            if self._lets_through()
            else super().call_module(m, forward, args, kwargs)
        )

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        """Return the node of a module's own tensor."""
        return attr_val if self._lets_through() else super().getattr(attr, attr_val, parameter_proxy_cache)

    def create_args_for_root(
        self, root_fn: Any, is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Return the forward and its arguments: the images alone, so that every other one has its default."""
        return root_fn, [self.root, self.create_proxy("placeholder", "x", (), {})]

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Return whether a module stays one node."""
        return module_qualified_name not in self.opened


class _ShapedTracer(_Tracer):
    """A tracer that computes each value beside its node, so that code may ask for sizes and types."""

    def __init__(self, opened: Collection[str], x: Tensor) -> None:
        super().__init__(opened)
        self.x = x

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Return a stand-in that knows its value's shape."""
        return _ShapedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        """Make the node and its value; a size other than the batch's is the value itself."""
        proxy: fx.Proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        self.computing = True
        try:
            with torch.no_grad():
                proxy.node.meta["value"] = self._value(kind, target, *_values((args, kwargs)))
        finally:
            self.computing = False
        value = proxy.node.meta["value"]
        return value if kind != "call_method" and _is_size(value) else proxy

    def _value(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return self.x
        if kind == "get_attr":
            return operator.attrgetter(target)(self.root)
        if kind == "call_module":
            return self.root.get_submodule(target)(*args, **kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)


class _ShapedProxy(fx.Proxy):
    """A stand-in for a value of which all but the numbers is known."""

    def __getattr__(self, name: str) -> Any:
        if name == "shape":
            return self.size()
        value = self.node.meta["value"]
        if name in {"ndim", "dtype", "device", "is_cuda", "requires_grad"} and isinstance(value, Tensor):
            return getattr(value, name)
        return super().__getattr__(name)

    def size(self, dim: int | None = None) -> Any:
        """Return the sizes, of which that of the batch stays a stand-in."""
        value = self.node.meta["value"]
        batch = self.tracer.create_proxy("call_method", "size", (self, 0), {})
        sizes = (batch, *value.shape[1:])
        return sizes if dim is None else sizes[dim]

    def dim(self) -> int:
        """Return the number of axes."""
        return int(self.node.meta["value"].ndim)

    def __len__(self) -> int:
        return len(self.node.meta["value"])

    def __iter__(self) -> Any:
        value = self.node.meta["value"]
        if isinstance(value, tuple | list | torch.Size):
            return iter([operator.getitem(self, place) for place in range(len(value))])
        return super().__iter__()

    def __bool__(self) -> bool:
        value = self.node.meta["value"]
        return bool(value) if not isinstance(value, Tensor) else super().__bool__()


def _is_size(value: Any) -> bool:
    """Return whether a value is a number, or several, that follow from sizes alone."""
    if isinstance(value, tuple | list) and value:
        return all(map(_is_size, value))
    return isinstance(value, int | float)


def _values(arguments: Any) -> Any:
    return fx.node.map_aggregate(
        arguments, lambda item: item.node.meta["value"] if isinstance(item, fx.Proxy) else item
    )
