"""The models side as a Python API: load a bundle, explain images, check explanations.

The names below are imported when they are first used, so that ``import models`` loads no torch. See
docs/reference/python.md.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.attribution.parameters import Parameters
    from models.attribution.registry import METHODS, block_method, register_method
    from models.attribution.result import Attribution
    from models.attribution.targets import Target, make_target
    from models.backends.registry import create_backend
    from models.bundle import Bundle, load_bundle, save_bundle
    from models.cancellation import Deadline, deadline_scope
    from models.errors import LucidaError
    from models.explainer import Explainer, ExplainOptions, Explanation
    from models.images.decode import Image, Limits, decode_image, image_from_array, read_image
    from models.images.frame import Frame
    from models.images.geometry import Geometry
    from models.metrics.audit import run_audit
    from models.networks.adoption import adopt
    from models.networks.summary import summarize_network
    from models.networks.transfer_model import TransferModel
    from models.visualization.overlay import draw_overlay

_MODULES = {
    "attribution.parameters": ("Parameters",),
    "attribution.registry": ("METHODS", "block_method", "register_method"),
    "attribution.result": ("Attribution",),
    "attribution.targets": ("Target", "make_target"),
    "backends.registry": ("create_backend",),
    "bundle": ("Bundle", "load_bundle", "save_bundle"),
    "cancellation": ("Deadline", "deadline_scope"),
    "errors": ("LucidaError",),
    "explainer": ("ExplainOptions", "Explainer", "Explanation"),
    "images.decode": ("Image", "Limits", "decode_image", "image_from_array", "read_image"),
    "images.frame": ("Frame",),
    "images.geometry": ("Geometry",),
    "metrics.audit": ("run_audit",),
    "networks.adoption": ("adopt",),
    "networks.summary": ("summarize_network",),
    "networks.transfer_model": ("TransferModel",),
    "visualization.overlay": ("draw_overlay",),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "METHODS",
    "Attribution",
    "Bundle",
    "Deadline",
    "ExplainOptions",
    "Explainer",
    "Explanation",
    "Frame",
    "Geometry",
    "Image",
    "Limits",
    "LucidaError",
    "Parameters",
    "Target",
    "TransferModel",
    "adopt",
    "block_method",
    "create_backend",
    "deadline_scope",
    "decode_image",
    "draw_overlay",
    "image_from_array",
    "load_bundle",
    "make_target",
    "read_image",
    "register_method",
    "run_audit",
    "save_bundle",
    "summarize_network",
]


def __getattr__(name: str) -> Any:
    """Import a name of the API from its module, once."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has: {', '.join(__all__)}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the names of the API."""
    return __all__
