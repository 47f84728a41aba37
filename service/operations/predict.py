"""/predict: the scores of all classes."""

from __future__ import annotations

from service import schemas
from service.inference.predictor import Predictor
from service.inference.timing import Timer
from service.operations.evidence import novelty_answer, unusual_warnings
from service.operations.form import Form
from service.operations.operation import Operation


class PredictForm(Form):
    """Fields: none besides the deadline."""


def _predict(predictor: Predictor, data: bytes, form: PredictForm) -> schemas.PredictAnswer:
    timer = Timer()
    image = predictor.read(data, timer)
    ranking, observation = predictor.predict(image, timer)
    novelty = predictor.novelty(observation)
    return schemas.PredictAnswer(
        task=predictor.model.scoring.task,
        predictions=[schemas.Score.model_validate(item) for item in ranking],
        novelty=novelty_answer(novelty),
        **predictor.about(image.image, timer, (*image.warnings, *unusual_warnings(novelty))),
    ).with_observation(observation)


OPERATION = Operation(
    name="predict", form=PredictForm, run=_predict, answer=schemas.PredictAnswer, several=True,
    summary="Scores of all classes, highest first.",
)  # fmt: skip
