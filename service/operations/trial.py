"""A trial of a model before it answers anybody: whole answers about its probe, as they are sent."""

from __future__ import annotations

import json

from models.bundle import read_probe_file
from models.errors import BundleError
from service.inference.model_card import describe_model
from service.inference.predictor import Predictor
from service.operations.explain import OPERATION as EXPLAIN, ExplainForm
from service.operations.form import Form
from service.operations.operation import Operation
from service.operations.predict import OPERATION as PREDICT, PredictForm
from service.schemas import Answer


def try_answers(predictor: Predictor) -> None:
    """Make and encode the model's card, a prediction and an explanation; raises BundleError.

    A name that no encoder takes, or a figure that is no number, would otherwise fail each request, and
    /metrics with them.
    """
    probe = read_probe_file(predictor.bundle.folder)
    try:
        json.dumps(describe_model(predictor), ensure_ascii=False, allow_nan=False).encode()
        forms: list[tuple[Operation, Form]] = [(PREDICT, PredictForm())]
        if predictor.explainer.default_method not in predictor.explainer.disabled:
            forms.append((EXPLAIN, ExplainForm(overlay=True)))
        for operation, form in forms:
            answer = operation.run(predictor, probe, form)
            assert isinstance(answer, Answer)
            json.dumps(answer.model_dump(), ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, TypeError) as error:
        raise BundleError(f"The model's answers cannot be sent: {error}.") from error
