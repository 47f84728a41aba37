"""Which methods may be asked what of one model."""

from __future__ import annotations

from collections.abc import Mapping

from models.attribution.registry import METHODS
from models.errors import ExplanationError
from models.method_checks import MethodCheck
from models.networks.transfer_model import TransferModel


def barred_methods(model: TransferModel, checks: Mapping[str, MethodCheck]) -> dict[str, str]:
    """Return the methods whose maps of a model mean nothing, with the reason: those that its checks bar, and
    those that read a block where no block has a map.
    """
    without: dict[str, str] = {}
    if model.layout(model.cam_block).name == "none":
        reason = f"{model.backbone.name} has no block with a map to read."
        without = {name: reason for name, method in METHODS.items() if method.reads_block}
    return without | {name: check.reason for name, check in checks.items() if check.disabled}


def methods_for_others(model: TransferModel) -> dict[str, str]:
    """Return the methods that read attention, with the reason, for a network that has none over all tokens or
    keeps it inside an exported program.
    """
    backbone = model.backbone
    if model.layout(model.cam_block).name == "tokens" and not backbone.is_exported:
        return {}
    what = "is an exported program" if backbone.is_exported else "has no attention over all tokens"
    return {name: f"{backbone.name} {what}." for name, method in METHODS.items() if method.needs_attention}


def usable_methods(model: TransferModel) -> list[str]:
    """Return the methods that are for such a network, in the order of the table."""
    return [name for name in METHODS if name not in methods_for_others(model)]


def check_allowed(method: str, disabled: Mapping[str, str]) -> None:
    """Raise ExplanationError for a method that is disabled for a model."""
    if method in disabled:
        raise ExplanationError(
            f"The method {method} is barred for this model. {disabled[method]} "
            f"Choose one of: {_others(disabled)}."
        )


def check_tells_classes_apart(
    method: str, class_blind: Mapping[str, str], disabled: Mapping[str, str]
) -> None:
    """Raise ExplanationError for a method that cannot tell one class from another with a model."""
    if method in class_blind:
        others = _others({**disabled, **class_blind})
        raise ExplanationError(
            f"The method {method} is asked about the predicted class only, for with this model it cannot "
            f"tell one from another. {class_blind[method]} Choose one of: {others}."
        )


def _others(without: Mapping[str, str]) -> str:
    return ", ".join(name for name in METHODS if name not in without) or "none"
