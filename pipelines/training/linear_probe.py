"""What the pretrained features tell before anything is trained: the accuracy of a linear probe, the baseline
of every run, and what is odd about the data.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch

from models.devices import to_host
from models.networks.transfer_model import HEAD, pool_to_vectors
from pipelines.data.dataset import Dataset
from pipelines.evaluation.data_issues import DataIssues, inspect_data
from pipelines.progress import Reporter
from pipelines.training.feature_cache import CachedFeatures
from pipelines.training.features import Features

_MOST_IMAGES, _CHUNK = 20_000, 256


def fit_linear_probe(features: Features) -> float | None:
    """Return validation accuracy of a logistic regression on the pooled features of the unvaried training
    images, before anything is trained (Alain & Bengio 2017); None when the set is too large for the cache.

    For several labels, one regression each, and the share of label decisions that is right.
    """
    # The imports take a second, which commands that train nothing need not wait for.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    pooled = features.at(HEAD, views=1)
    if not pooled.train or pooled.val is None:
        return None
    count = min(pooled.pictures, _MOST_IMAGES)
    chosen = np.random.default_rng(0).permutation(pooled.pictures)[:count]
    x = _vectors(pooled.train[0], np.sort(chosen))
    targets = features.targets[np.sort(chosen)].numpy()
    held_out = _vectors(pooled.val, np.arange(len(pooled.val)))
    truth = features.val_targets.numpy()
    pooled.release()
    several = features.data.task == "multilabel"
    regression = LogisticRegression(C=0.1, max_iter=500)
    probe = make_pipeline(StandardScaler(), OneVsRestClassifier(regression) if several else regression)
    with warnings.catch_warnings():
        # A baseline stopped a little early is still that baseline.
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(x, targets if several else targets.argmax(1))
    answer = probe.predict(held_out)
    return float(np.mean(answer == truth) if several else np.mean(answer == truth.argmax(1)))


def inspect_by_features(features: Features, data: Dataset, reporter: Reporter) -> DataIssues:
    """Look for wrong labels and near duplicates by the pretrained features, which no label has shaped."""
    pooled = features.at(HEAD, views=1)
    stored = {"train": pooled.train[0] if pooled.train else None, "val": pooled.val}

    def embed(split: str, places: Sequence[int]) -> np.ndarray:
        if (cached := stored.get(split)) is not None:
            return _vectors(cached, np.asarray(places))
        samples = [data.samples(split)[place] for place in places]
        rows = features.stream(samples, [0] * len(samples), pooled.level)
        return torch.cat([to_host(pool_to_vectors(part)) for part in rows]).numpy()

    issues = inspect_data(data, embed, progress=reporter.step)
    pooled.release()
    return issues


def _vectors(stored: CachedFeatures, rows: np.ndarray) -> np.ndarray:
    """Return one vector an image, read in parts: a backbone that classifies maps has them averaged."""
    starts = range(0, len(rows), _CHUNK)
    averaged: np.ndarray = torch.cat(
        [pool_to_vectors(stored.rows(rows[start : start + _CHUNK])) for start in starts]
    ).numpy()
    return averaged
