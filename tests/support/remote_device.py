"""A device that is not there: tensors that compute on the processor and refuse to meet those of the host.

It claims to be torch's "meta" device, which autograd takes for a real one, but its tensors hold values. What
mixes the two sides without a copy raises, as CUDA would, forwards and backwards; only a scalar of the host,
an index or a copy may meet it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

REMOTE = torch.device("meta")
_MAY_MIX = ("aten::copy_", "aten::index.Tensor", "aten::index_put", "aten::_index_put_impl_")
"""Indices of the host may choose from a device's tensor."""


class RemoteTensor(Tensor):
    """A tensor of the device; ``held`` has its values."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> RemoteTensor:
        """Wrap values of the host."""
        remote: RemoteTensor = Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype,
            device=REMOTE,
        )  # fmt: skip
        remote.held = held
        return remote

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation whose tensors are all on one side."""
        return _run(func, args, kwargs or {})

    def __repr__(self) -> str:
        """Tell it from others."""
        return f"RemoteTensor({tuple(self.shape)})"


class _Transfers(TorchDispatchMode):
    """Copies to and from the device, and tensors that are made on it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.name()
    tensors = [item for item in tree_flatten((args, kwargs))[0] if isinstance(item, Tensor)]
    remote = [item for item in tensors if isinstance(item, RemoteTensor)]
    local = [item for item in tensors if not isinstance(item, RemoteTensor) and item.ndim > 0]
    target = kwargs.get("device")
    if name == "aten::_to_copy" and target is not None:
        result = func(*tree_map(_values, args), **kwargs | {"device": torch.device("cpu")})
        return RemoteTensor(result) if torch.device(target) == REMOTE else result
    if remote and local and not name.startswith(_MAY_MIX):
        raise RuntimeError(f"{name}: expected all tensors to be on the same device")
    made_there = target is not None and torch.device(target) == REMOTE
    if made_there:
        kwargs = kwargs | {"device": torch.device("cpu")}
    if name == "aten::_local_scalar_dense":
        return func(*tree_map(_values, args))
    result = func(*tree_map(_values, args), **tree_map(_values, kwargs))
    goes_there = isinstance(tensors[0], RemoteTensor) if name == "aten::copy_" else bool(remote) or made_there
    if not goes_there:
        return result
    first = args[0] if args else None
    if name.split(".")[0].endswith("_") and isinstance(first, RemoteTensor):
        return first
    return tree_map(lambda item: RemoteTensor(item) if isinstance(item, Tensor) else item, result)


def _values(item: Any) -> Any:
    return item.held if isinstance(item, RemoteTensor) else item


@contextmanager
def remote_device() -> Iterator[None]:
    """Let tensors move to the device and back, for as long as the context lasts."""
    with _Transfers():
        yield


def send(module: nn.Module, to: Callable[[Tensor], Tensor] | None = None) -> nn.Module:
    """Put a module's weights and buffers onto the device, or wherever ``to`` takes them, in place."""
    to = to or (lambda value: RemoteTensor(value.detach()))
    for part in module.modules():
        for name, value in list(part._parameters.items()):
            if value is not None:
                part._parameters[name] = nn.Parameter(to(value), value.requires_grad)
        for name, value in list(part._buffers.items()):
            if value is not None:
                part._buffers[name] = to(value)
    return module
