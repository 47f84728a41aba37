"""Parameters for any method of the table."""

from __future__ import annotations

from dataclasses import fields

from models.attribution.parameters import Parameters
from models.attribution.registry import METHODS

FOR_MAPS = [name for name, method in METHODS.items() if not method.needs_attention]
"""The methods that convolutional networks have."""


def parameters_of(method: str, **values: int) -> Parameters:
    """Return the method's parameters with those of the values that it has."""
    kind = METHODS[method].parameters
    return kind.from_names({item.name: values[item.name] for item in fields(kind) if item.name in values})
