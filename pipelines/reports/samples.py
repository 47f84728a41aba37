"""A few validation pictures that a model's page offers to try, chosen and made small when it is trained."""

from __future__ import annotations

import json
from collections.abc import Callable

from models.bundle import SAMPLES_FILE, SAMPLES_FOLDER
from models.images.decode import read_image
from models.images.encode import encode_image
from pipelines.evaluation.classification import EvaluatedSample, Evaluation

_MOST_CLASSES, _CLOSE_CALLS = 6, 2
_SIDE = 512


def choose_samples(evaluation: Evaluation) -> list[EvaluatedSample]:
    """Return the surest right answer of each of the first six classes, and the two answers that were least
    sure.
    """
    right = [item for item in evaluation.samples if item.is_correct]
    right.sort(key=lambda item: (item.error, item.sample.sha256))
    surest = {item.truth: item for item in reversed(right)}
    chosen = [surest[name] for name in [*evaluation.classes, *surest] if name in surest]
    chosen = list(dict.fromkeys(chosen))[:_MOST_CLASSES]
    return chosen + [item for item in evaluation.least_sure if item not in chosen][:_CLOSE_CALLS]


def log_samples(evaluation: Evaluation, keep: Callable[[bytes | str, str], None]) -> None:
    """Keep the samples of a validation split as JPEG files, with the true label of each by its file name."""
    labels = {}
    for number, item in enumerate(choose_samples(evaluation), start=1):
        image = read_image(item.sample.path).pil
        image.thumbnail((_SIDE, _SIDE))
        labels[f"{number:02d}.jpg"] = item.truth
        keep(encode_image(image), f"{SAMPLES_FOLDER}/{number:02d}.jpg")
    keep(json.dumps(labels, ensure_ascii=False), f"{SAMPLES_FOLDER}/{SAMPLES_FILE}")
