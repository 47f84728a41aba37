"""Which methods may be asked what of one model."""

from __future__ import annotations

from collections.abc import Mapping

from models.attribution.registry import METHODS
from models.errors import ExplanationError
from models.networks.transfer_model import TransferModel


def methods_without_map(model: TransferModel) -> dict[str, str]:
    """Return the methods that read a block, with the reason, for a network whose blocks have no map."""
    if model.layout(model.cam_block).name != "none":
        return {}
    reason = f"{model.backbone.name} has no block with a map to read."
    return {name: reason for name, method in METHODS.items() if method.reads_block}


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
