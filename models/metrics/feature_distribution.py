"""The distribution of a model's features over its validation images, and how far new images are from it."""

from __future__ import annotations

import numpy as np

from models.reference import FeatureDistribution, to_unit_length

_MOST_COMPONENTS = 16
_IMAGES_A_COMPONENT = 4
"""Directions are taken as far as there are images to tell their variances by."""
_FOLDS = 10
_FEWEST = 10


def fit_features(features: np.ndarray) -> FeatureDistribution:
    """Fit a normal distribution to features (N, D) of unit length by probabilistic PCA (Tipping and Bishop
    1999): the leading directions with their variances, and the mean variance of all others.
    """
    count, size = features.shape
    rows = to_unit_length(features)
    mean = rows.mean(axis=0)
    _, scales, directions = np.linalg.svd(rows - mean, full_matrices=False)
    variances = scales**2 / max(1, count - 1)
    leading = max(1, min(_MOST_COMPONENTS, count // _IMAGES_A_COMPONENT, size - 1))
    residual = variances[leading:].sum() / max(1, size - leading)
    # What never varied in these images must not count without bound in the next.
    floor = max(float(variances.sum()) / size * 1e-3, 1e-12)
    total = max(float(variances.sum()), 1e-12)
    # Unbiased, unlike that of the sample (Bai and Saranadasa 1996).
    square = (float((variances**2).sum()) - total**2 / max(1, count - 1)) * count**2
    square /= max(1, (count + 2) * (count - 1))
    return FeatureDistribution(
        mean,
        directions[:leading],
        np.maximum(variances[:leading], floor),
        max(float(residual), floor),
        total,
        max(square, total**2 / max(size, 2)),
        count,
    )


def measure_own_distances(features: np.ndarray) -> np.ndarray:
    """Return the distance (N,) of each image from the others': by folds, so that none is measured by a
    distribution that it had a part in, which would flatter it.
    """
    folds = np.arange(len(features)) % min(_FOLDS, len(features))
    distances = np.empty(len(features))
    for fold in np.unique(folds):
        distances[folds == fold] = fit_features(features[folds != fold]).distance(features[folds == fold])
    return distances


def fit_novelty(features: np.ndarray) -> tuple[FeatureDistribution, np.ndarray] | None:
    """Return the distribution of all features (N, D) and the images' own distances; None for fewer than ten
    images.
    """
    if len(features) < _FEWEST:
        return None
    return fit_features(features), measure_own_distances(features)
