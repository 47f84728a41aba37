"""Weights of a network from a safetensors file, checked before they cost memory and before they are used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load as load_tensors
from torch import Tensor

from models.errors import BundleError
from models.networks.transfer_model import TransferModel

_TYPE_NAMES = {torch.float32: "F32", torch.int64: "I64"}
"""As safetensors has them, of the types that networks here have."""


def check_weights_header(path: Path, bare: TransferModel) -> None:
    """Raise BundleError unless a safetensors file has the names, shapes and types of an architecture, which
    may be on the meta device; no weight is read.
    """
    expected = bare.state_dict()
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            parts = {renamed_key(key, bare.backbone.renamed): file.get_slice(key) for key in names}
            shapes = {key: (part.get_dtype(), tuple(part.get_shape())) for key, part in parts.items()}
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"{path.name} is not a readable safetensors file: {error}.") from error
    if differing := sorted(set(expected) ^ set(shapes)):
        raise BundleError(
            f"{path.name} and the backbone {bare.backbone.name} "
            f"differ in {len(differing)} names: {differing[:3]}."
        )
    for key, (kind, shape) in shapes.items():
        needed = (_TYPE_NAMES.get(expected[key].dtype), tuple(expected[key].shape))
        if (kind, shape) != needed:
            raise BundleError(
                f"{path.name} has {key!r} as {kind} {shape}; the backbone needs {needed[0]} {needed[1]}."
            )


def renamed_key(key: str, renamed: Mapping[str, str]) -> str:
    """Return the present name of a weight: another beginning where ``renamed`` has its old one."""
    return next((new + key.removeprefix(old) for old, new in renamed.items() if key.startswith(old)), key)


def parse_weights(data: bytes, name: str, renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file, all of them finite, by their present names; ``name`` is the
    file's, for errors.

    Raises BundleError.
    """
    try:
        state: dict[str, Tensor] = load_tensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise BundleError(f"{name} is not a readable safetensors file: {error}.") from error
    for key, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise BundleError(f"{name} has values in {key!r} that are not finite.")
    return {renamed_key(key, renamed): value for key, value in state.items()}
