"""What an explainer's answers look like in figures, and how unusual an image is for its model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from models.attribution.forward import predict_with_value
from models.attribution.result import INPUT_BLOCK, Attribution
from models.explainer import Explainer, Explanation, PreparedImage
from models.metrics.feature_distribution import fit_novelty
from models.metrics.observation import image_figures, map_figures, pool_features, pool_map
from models.networks.predictions import Prediction
from models.reference import Observation, Reference, summarize_values, to_unit_length

UNUSUAL_PERCENTILE = 99.0
"""From here on an image is called unusual; of images like those of the validation, 1 in 100."""


@dataclass(frozen=True, slots=True)
class Novelty:
    """Distance of an image from those of the validation, by its features."""

    distance: float
    """Mahalanobis, about 1 for an image like them."""
    percentile: float
    """Share of the validation images that are nearer, in percent."""

    @property
    def warning(self) -> str | None:
        """A sentence for an unusual image; None for any other."""
        if self.percentile < UNUSUAL_PERCENTILE:
            return None
        return (
            "The picture is unlike those that the model was validated on: its features are further from "
            f"theirs than those of {self.percentile:.0f} % of them. The scores may mean nothing here."
        )


class Observer:
    """Turns the answers of one explainer into figures, beside its bundle's reference where there is one."""

    def __init__(self, explainer: Explainer) -> None:
        self._explainer, self.reference = explainer, explainer.reference

    def observe_explanation(self, explanation: Explanation, place: int = 0) -> Observation:
        """Return the figures of one explained image; those of its map where the question was the reference's:
        the predicted class, by the default method and block. ``place`` is the image's in its batch.
        """
        prepared = PreparedImage(explanation.image, explanation.forward.x[place], explanation.frame, ())
        usual = next((item for item in explanation.attributions if self._is_usual(explanation, item)), None)
        features = self._features(explanation, place)
        observation = self._observe(prepared, explanation.predictions, features)
        if usual is None:
            return observation
        return replace(
            observation,
            figures={**observation.figures, **map_figures(usual)},
            empty=usual.status != "ok",
        )

    def predict(self, image: PreparedImage) -> tuple[list[Prediction], Observation]:
        """Return all classes of an image, highest score first, and its figures; raises ExplanationError for
        bad logits.
        """
        backend = self._explainer.backend
        logits, value = predict_with_value(backend, image.x.unsqueeze(0))
        predictions, features = self._explainer.rank(logits[0]), pool_features(backend.model, value)
        return predictions, self._observe(image, predictions, None if features is None else features[0])

    def _observe(
        self, image: PreparedImage, predictions: Sequence[Prediction], features: np.ndarray | None
    ) -> Observation:
        figures = image_figures(image.image, image.x, self._explainer.model.geometry)
        figures["score"] = predictions[0].score
        if self.reference is not None and features is not None:
            distance = self.reference.distance(features)
            figures |= {} if distance is None else {"novelty": distance}
        unit = to_unit_length(features[None])[0] if features is not None else None
        return Observation(figures, predictions[0].index, features=unit)

    def novelty(self, observation: Observation) -> Novelty | None:
        """Return how unusual an observed image is; None where the bundle has nothing to hold it against."""
        distance = observation.figures.get("novelty")
        if distance is None or self.reference is None:
            return None
        return Novelty(distance, self.reference.percentile(distance))

    def _is_usual(self, explanation: Explanation, attribution: Attribution) -> bool:
        target = attribution.target
        return (
            target.index == explanation.predictions[0].index
            and target.against is None
            and not target.negative
            and attribution.method == self._explainer.default_method
            and attribution.block in (self._explainer.default_block(attribution.method), INPUT_BLOCK)
            and "averaged" not in attribution.settings
        )

    def _features(self, explanation: Explanation, place: int = 0) -> np.ndarray | None:
        """Return the features (D,) of an explained image, of this place in its batch; another forward where
        another block was read.
        """
        model, forward = self._explainer.model, explanation.forward
        if forward.block == model.cam_block:
            features = pool_map(forward)
            return features[place] if features is not None else None
        with torch.no_grad():
            value = self._explainer.backend.until(model.cam_block, forward.x[place : place + 1])
        features = pool_features(model, value)
        return features[0] if features is not None else None


def build_reference(
    observations: Sequence[Observation], *, classes: int, control_maps: np.ndarray | None = None
) -> Reference:
    """Make the reference of a model of so many classes by the observations of its validation images, with
    maps (N, rows, cols) of some of them.
    """
    features = [item.features for item in observations if item.features is not None]
    complete = bool(features) and len(features) == len(observations)
    fitted = fit_novelty(np.stack(features)) if complete else None
    names = sorted({name for item in observations for name in item.figures})
    figures = {
        name: summarize_values(
            np.array([item.figures[name] for item in observations if name in item.figures])
        )
        for name in names
    }
    if fitted is not None:
        figures["novelty"] = summarize_values(fitted[1])
    maps = [item.empty for item in observations if item.empty is not None]
    return Reference(
        figures=figures,
        predicted=np.bincount([item.predicted for item in observations], minlength=classes),
        maps=len(maps),
        empty=sum(maps),
        features=fitted[0] if fitted is not None else None,
        control_maps=control_maps,
    )
