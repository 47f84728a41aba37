"""What a network is made of: each layer's shapes, receptive field, parameters and multiply-adds.

The network is built without memory for its weights and run once; every operation is seen where it reaches
torch's own kernels, so that poolings and paddings called as functions count like modules.

Receptive fields are carried along by :mod:`models.networks.receptive_field`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from models.networks.block_types import tags_of
from models.networks.receptive_field import ReceptiveField
from models.networks.transfer_model import HEAD, TransferModel


@dataclass(frozen=True, slots=True)
class LayerSummary:
    """An operation that moves, mixes or weighs positions or channels."""

    name: str
    """Path of its module in the block."""
    kind: str
    """conv, depthwise conv, 1x1 conv, max pool, avg pool, global pool, linear, norm or matrix product."""
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    shape: tuple[int, ...]
    """Of its output without the batch: (H, W, C) for maps, (C,) for a linear layer at each position."""
    field: ReceptiveField
    parameters: int
    multiply_adds: int


@dataclass(frozen=True, slots=True)
class BlockSummary:
    """A named block, or the head."""

    name: str
    shape: tuple[int, ...]
    """(H, W, C) of its output as a map; (classes,) of the head."""
    field: ReceptiveField
    parameters: int
    multiply_adds: int
    tags: tuple[str, ...]
    """residual, bottleneck, inverted bottleneck, inception, dense, depthwise, squeeze-and-excitation,
    attention."""
    layers: tuple[LayerSummary, ...]


@dataclass(frozen=True, slots=True)
class NetworkSummary:
    """A model's blocks from the input up."""

    backbone: str
    input: tuple[int, int, int]
    """(H, W, C)."""
    blocks: tuple[BlockSummary, ...]
    head: BlockSummary

    @property
    def parameters(self) -> int:
        """Of the whole model."""
        return sum(block.parameters for block in (*self.blocks, self.head))

    @property
    def multiply_adds(self) -> int:
        """For one image."""
        return sum(block.multiply_adds for block in (*self.blocks, self.head))

    def block(self, name: str) -> BlockSummary:
        """Return the block of that name, which the model is known to have."""
        return next(block for block in self.blocks if block.name == name)


def summarize_network(model: TransferModel) -> NetworkSummary:
    """Take a model's network apart, at its own input size; the model itself is not run."""
    geometry = model.geometry
    bare = _without_memory(model)
    x = torch.zeros(1, 3, geometry.crop_height, geometry.crop_width, device="meta")
    seen = _LayerRecorder()
    seen.fields[x] = ReceptiveField()
    blocks = []
    with torch.no_grad(), seen:
        for name in bare.block_names:
            part = bare.block(name)
            with _module_paths(part, seen):
                x = part(x)
            blocks.append(_block(name, part, _shape(bare, name, x), seen.fields[x], seen.take()))
        with _module_paths(bare.classifier, seen):
            logits = bare.head(x)
        head = _block(
            HEAD,
            bare.classifier,
            tuple(logits.shape[1:]),
            replace(ReceptiveField(), sees_all=True),
            seen.take(),
        )
    return NetworkSummary(
        model.backbone.name, (geometry.crop_height, geometry.crop_width, 3), tuple(blocks), head
    )


def _shape(model: TransferModel, block: str, value: Tensor) -> tuple[int, int, int]:
    """Return (H, W, C) of a block's map; of what is no map, its own sizes with ones before the last."""
    if block in model.blocks_with_map:
        channels, height, width = model.as_map(block, value).shape[1:]
        return height, width, channels
    first, second, last = (1, 1, *value.shape[1:])[-3:]
    return (second, first, last) if value.ndim == 3 else (first, second, last)


def _without_memory(model: TransferModel) -> TransferModel:
    """Return a copy in eval mode whose weights and buffers are on the meta device."""
    memo: dict[int, Any] = {id(value): nn.Parameter(value.to("meta")) for value in model.parameters()}
    memo |= {id(value): value.to("meta") for value in model.buffers()}
    return copy.deepcopy(model, memo).eval()


def _block(
    name: str, part: nn.Module, shape: tuple[int, ...], seen: ReceptiveField, layers: list[LayerSummary]
) -> BlockSummary:
    return BlockSummary(
        name=name,
        shape=shape,
        field=seen,
        parameters=sum(weights.numel() for weights in part.parameters()),
        multiply_adds=sum(layer.multiply_adds for layer in layers),
        tags=_tags(part, layers),
        layers=tuple(layers),
    )


def _tags(part: nn.Module, layers: Sequence[LayerSummary]) -> tuple[str, ...]:
    depthwise = any(layer.kind == "depthwise conv" for layer in layers)
    return (*tags_of(part), *(("depthwise",) if depthwise else ()))


@contextmanager
def _module_paths(part: nn.Module, seen: _LayerRecorder) -> Iterator[None]:
    """Let what runs know which module of ``part`` it belongs to; the hooks sit on a network made for this."""
    handles = []
    for name, module in part.named_modules():
        handles.append(module.register_forward_pre_hook(_push_module(seen, name, module)))
        handles.append(module.register_forward_hook(_pop_module(seen)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _push_module(seen: _LayerRecorder, name: str, module: nn.Module) -> Callable[..., None]:
    def enter(*_: Any) -> None:
        seen.path.append((name, module))

    return enter


def _pop_module(seen: _LayerRecorder) -> Callable[..., None]:
    def leave(*_: Any) -> None:
        seen.path.pop()

    return leave


class _LayerRecorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that records torch's operations: it carries receptive fields from inputs to outputs, and lists
    the layers.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fields: Any = WeakTensorKeyDictionary()
        self.path: list[tuple[str, nn.Module]] = []
        self._layers: list[LayerSummary] = []
        self._counted: set[nn.Module] = set()

    def take(self) -> list[LayerSummary]:
        """Return the layers since the last call."""
        taken, self._layers = self._layers, []
        return taken

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        inputs = [value for value in _tensors(args) if value in self.fields]
        if inputs:
            field = self.fields[inputs[0]]
            for other in inputs[1:]:
                field = self._meet(field, self.fields[other], func)
            field = self._through(func.overloadpacket.__name__, args, field, output)
            for value in _tensors((output,)):
                self.fields[value] = field
        return output

    @staticmethod
    def _meet(one: ReceptiveField, other: ReceptiveField, func: Any) -> ReceptiveField:
        """Join two fields; a local value weighed by a global one (squeeze-and-excitation) stays local."""
        if func.overloadpacket.__name__ in {"mul", "mul_"} and one.sees_all != other.sees_all:
            return replace(other if one.sees_all else one, sees_all=True)
        return one.joined(other)

    def _through(self, name: str, args: Sequence[Any], field: ReceptiveField, output: Any) -> ReceptiveField:
        if name == "convolution":
            _, weight, _, stride, padding, dilation = args[:6]
            kernel, groups = tuple(weight.shape[2:]), args[8]
            field = _apply_window(field, kernel, stride, padding, dilation)
            adds = output[0].numel() * math.prod(weight.shape[1:])
            self._note(_conv_kind(weight, groups), output, field, adds, kernel, stride, padding, dilation)
        elif name in {"max_pool2d_with_indices", "avg_pool2d"}:
            kernel, stride = _pair(args[1]), _pair(args[2]) if len(args) > 2 and args[2] else _pair(args[1])
            padding = _pair(args[3]) if len(args) > 3 else (0, 0)
            dilation = _pair(args[4]) if name.startswith("max") and len(args) > 4 else (1, 1)
            field = _apply_window(field, kernel, stride, padding, dilation)
            out = output[0] if isinstance(output, tuple) else output
            self._note(
                "max pool" if "max" in name else "avg pool", out, field, 0, kernel, stride, padding, dilation
            )
        elif name == "constant_pad_nd":
            left, _, top, _ = (*args[1], 0, 0)[:4]
            field = replace(field, rows=field.rows.padded(top), cols=field.cols.padded(left))
        elif name in {"_adaptive_avg_pool2d", "adaptive_avg_pool2d"} or (
            name == "mean" and args[0].ndim == 4
        ):
            field = replace(field, sees_all=True)
            self._note("global pool", output, field, 0)
        elif name in {"addmm", "mm", "bmm", "baddbmm"}:
            one, other = [value for value in _tensors(args) if value.ndim >= 2][-2:]
            linear = name in {"addmm", "mm"}
            field = field if linear else replace(field, sees_all=True)
            adds = one.shape[-2] * one.shape[-1] * other.shape[-1] * (1 if linear else one.shape[0])
            self._note("linear" if linear else "matrix product", output, field, adds)
        elif "attention" in name:
            field = replace(field, sees_all=True)
            query, key, value = args[:3]
            adds = query.numel() * key.shape[-2] + query.shape[0] * query.shape[1] * query.shape[
                2
            ] * value.numel() // (value.shape[0] * value.shape[1])
            self._note("matrix product", output[0] if isinstance(output, tuple) else output, field, adds)
        elif name in {"native_batch_norm", "_native_batch_norm_legit_no_training", "native_layer_norm"}:
            self._note("norm", output[0], field, 0, channels_last="layer" in name)
        return field

    def _note(
        self,
        kind: str,
        output: Tensor,
        field: ReceptiveField,
        multiply_adds: int,
        kernel: Sequence[int] = (1, 1),
        stride: Sequence[int] = (1, 1),
        padding: Sequence[int] = (0, 0),
        dilation: Sequence[int] = (1, 1),
        channels_last: bool = False,
    ) -> None:
        name, module = self.path[-1] if self.path else ("", None)
        # A module that computes several products has its weights counted once.
        own: list[nn.Parameter] = []
        if module is not None and module not in self._counted:
            own = list(module.parameters(recurse=False))
            self._counted.add(module)
        shape = tuple(output.shape[1:])
        self._layers.append(
            LayerSummary(
                name=name,
                kind=kind,
                kernel=_pair(kernel),
                stride=_pair(stride),
                padding=_pair(padding),
                dilation=_pair(dilation),
                shape=(shape[1], shape[2], shape[0]) if len(shape) == 3 and not channels_last else shape,
                field=field,
                parameters=sum(weights.numel() for weights in own),
                multiply_adds=multiply_adds,
            )
        )


def _conv_kind(weight: Tensor, groups: int) -> str:
    if groups > 1 and weight.shape[1] == 1:
        return "depthwise conv"
    return "1x1 conv" if tuple(weight.shape[2:]) == (1, 1) else "conv"


def _apply_window(
    field: ReceptiveField,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> ReceptiveField:
    (ky, kx), (sy, sx), (py, px), (dy, dx) = (_pair(sizes) for sizes in (kernel, stride, padding, dilation))
    return replace(field, rows=field.rows.through(ky, sy, py, dy), cols=field.cols.through(kx, sx, px, dx))


def _pair(value: Any) -> tuple[int, int]:
    if isinstance(value, int):
        return value, value
    return (int(value[0]), int(value[-1]))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
