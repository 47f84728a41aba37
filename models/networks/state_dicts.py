"""Weights that were saved elsewhere, fitted to a network: wrapped, prefixed, averaged, or for other classes.

What is mended is only what cannot change the function: a wrapper around the state dict, one prefix before all
names. Everything else is refused with the first names that do not fit.
"""

from __future__ import annotations

import pickle
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from models.errors import ConfigError

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model_state_dict", "model", "net", "network")
"""Keys under which training scripts put the weights; the averaged ones are what they validate, so first."""
_MOST_BYTES = 16_000_000_000
_NAMED = 3


@dataclass(frozen=True, slots=True)
class FittedState:
    """A state dict with a network's own names and shapes."""

    state: dict[str, Tensor]
    notes: tuple[str, ...]
    """What was mended, in sentences."""


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights of a safetensors file, or of a file of tensors that torch saved, and what
    was unwrapped.

    Raises ConfigError for a file that is none of these: a pickled module is never loaded.
    """
    if not path.is_file():
        raise ConfigError(f"There is no file {path}.")
    if path.stat().st_size > _MOST_BYTES:
        raise ConfigError(f"{path.name} has {path.stat().st_size:,} bytes; the limit is {_MOST_BYTES:,}.")
    if path.suffix == ".safetensors":
        try:
            return load_file(path), ()
        except (SafetensorError, OSError, ValueError) as error:
            raise ConfigError(f"{path.name} is not a readable safetensors file: {error}.") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"{path.name} holds more than tensors, such as a pickled module, and is not loaded: that would "
            "run its code. Save its weights alone, where you trust it: "
            "safetensors.torch.save_file(model.state_dict(), 'weights.safetensors')."
        ) from error
    except (RuntimeError, OSError, ValueError, EOFError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{path.name} is not a readable file of weights: {reason}") from error
    return _unwrapped(content, path.name)


def _unwrapped(content: Any, name: str) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    notes: list[str] = []
    while key := next((key for key in _WRAPPERS if _is_state(content, key)), None):
        content = content[key]
        notes.append(f"The weights were taken from {key!r} in {name}.")
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise ConfigError(f"{name} holds no state dict: no names with tensors.")
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}, tuple(notes)


def _is_state(content: Any, key: str) -> bool:
    inner = content.get(key) if isinstance(content, Mapping) else None
    return isinstance(inner, Mapping) and len(inner) > 0


def fit_state_dict(
    network: nn.Module, state: Mapping[str, Tensor], *, replaceable: Collection[str] = ()
) -> FittedState:
    """Return a state dict that the network loads strictly.

    Of the names in ``replaceable``, which are those of a classifier, weights that are missing or for another
    number of classes stay the network's own. Auxiliary classifiers, which only training uses, are left out.
    Raises ConfigError with the first names that do not fit.
    """
    own = network.state_dict()
    stripped, notes = _without_prefix(state, own)
    extra = sorted(set(stripped) - set(own))
    auxiliary = [key for key in extra if "aux" in key.split(".")[0].lower()]
    extra = [key for key in extra if key not in auxiliary]
    optional = {key for key in own if key in replaceable or key.endswith("num_batches_tracked")}
    missing = sorted(set(own) - set(stripped) - optional)
    if extra or missing:
        raise ConfigError(_names_that_do_not_fit(network, extra, missing))
    fitted: dict[str, Tensor] = {}
    for key, value in own.items():
        saved = stripped.get(key, value)
        if saved.shape != value.shape and key not in replaceable:
            raise ConfigError(
                f"{key!r} is {tuple(saved.shape)} in the file and {tuple(value.shape)} in the network"
                + _advice_on_classes(saved, value)
            )
        fitted[key] = saved.to(value.dtype) if saved.shape == value.shape else value
    if new := [key for key in replaceable if key not in stripped or stripped[key].shape != own[key].shape]:
        notes = (*notes, f"{', '.join(new)} are not those of the file, and begin anew.")
    if auxiliary:
        notes = (
            *notes,
            f"{len(auxiliary)} weights of auxiliary classifiers were left out: they only train.",
        )
    return FittedState(fitted, notes)


def _without_prefix(
    state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Return the weights without the prefix under which the most of their names are the network's own."""
    likely = _likely_names(own)
    prefixes = {""} | {key[: -len(name)] for key in state for name in likely if key.endswith(f".{name}")}
    best = max(sorted(prefixes), key=lambda prefix: sum(prefix + name in state for name in own))
    if not best:
        return dict(state), ()
    inside = {key.removeprefix(best): value for key, value in state.items() if key.startswith(best)}
    outside = {key: value for key, value in state.items() if not key.startswith(best)}
    return inside | outside, (f"The prefix {best!r} was taken off the names.",)


def _likely_names(own: Mapping[str, Tensor]) -> list[str]:
    names = list(own)
    return [names[0], names[len(names) // 2], names[-1]] if names else []


def _names_that_do_not_fit(network: nn.Module, extra: list[str], missing: list[str]) -> str:
    parts = []
    if missing:
        parts.append(f"lacks {len(missing)} weights of the network, such as {', '.join(missing[:_NAMED])}")
    if extra:
        parts.append(f"has {len(extra)} that the network lacks, such as {', '.join(extra[:_NAMED])}")
    return f"The file does not fit {type(network).__name__}: it {' and '.join(parts)}."


def _advice_on_classes(saved: Tensor, value: Tensor) -> str:
    if saved.ndim and saved.shape[1:] == value.shape[1:]:
        return f": the file is for {len(saved)} classes, not for {len(value)}."
    return "."
