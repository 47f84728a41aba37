"""Operations asked in this process, as the routes ask them: fields checked, then run."""

from __future__ import annotations

from typing import Any

from service.inference.predictor import Predictor
from service.operations.registry import OPERATIONS


def ask(predictor: Predictor, operation: str, data: bytes = b"", **fields: Any) -> Any:
    """Return the answer of an operation; raises what the service turns into an HTTP error."""
    spec = OPERATIONS[operation]
    form = spec.form.model_validate(fields)
    form.check(predictor)
    return spec.run(predictor, data, form)
