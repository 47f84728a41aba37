"""Labels that the other pictures contradict, by confident learning (Northcutt, Jiang and Chuang 2021).

A logistic regression on features that no label has shaped scores each picture by the others (five folds), and
cleanlab compares these scores with the labels: what it returns is a guess for a person to look at.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipelines.data.dataset import Sample

FOLDS = 5
_C, _STEPS = 30.0, 100
"""Of the regression on features of unit length: where precision and recall were best on specimens of which
5 % had a wrong label (docs/experiments.md).
"""


@dataclass(frozen=True, slots=True)
class LabelError:
    """A picture whose label may be wrong."""

    sample: Sample
    labels: tuple[int, ...]
    """Indices of its classes."""
    suggested: tuple[int, ...]
    """Those that the other pictures suggest."""
    score: float
    """Of its label by the other pictures, 0 to 1; of several the lowest that is doubted."""


def find_label_errors(
    samples: Sequence[Sample], vectors: np.ndarray, *, classes: int, several: bool
) -> list[LabelError]:
    """Return the samples whose labels may be wrong, the least credible first, by features (N, D).

    With ``several`` each class is a question of its own. Classes with fewer than five samples are left out.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    x = (vectors / np.maximum(lengths, 1e-12)).astype(np.float64)
    errors = _several(samples, x, classes) if several else _single(samples, x, classes)
    return sorted(errors, key=lambda error: (error.score, error.sample.sha256))


def too_few_to_judge(samples: Sequence[Sample], *, classes: int) -> list[int]:
    """Return the classes whose samples cannot be divided into the folds."""
    counts = np.bincount([label for sample in samples for label in sample.labels], minlength=classes)
    return np.flatnonzero(counts < FOLDS).tolist()


def _single(samples: Sequence[Sample], x: np.ndarray, classes: int) -> list[LabelError]:
    few = set(too_few_to_judge(samples, classes=classes))
    rows = np.array([n for n, sample in enumerate(samples) if sample.labels[0] not in few], dtype=int)
    labels = np.array([samples[n].labels[0] for n in rows], dtype=int)
    present = np.unique(labels)
    if len(present) < 2:
        return []
    places = np.searchsorted(present, labels)
    scores = _out_of_fold(x[rows], places)
    errors = []
    for row in np.flatnonzero(_doubted(places, scores)).tolist():
        sample = samples[rows[row]]
        best = int(present[scores[row].argmax()])
        if (best,) != sample.labels:
            errors.append(LabelError(sample, sample.labels, (best,), float(scores[row, places[row]])))
    return errors


def _several(samples: Sequence[Sample], x: np.ndarray, classes: int) -> list[LabelError]:
    doubts: dict[int, list[tuple[int, float]]] = {}
    for label in range(classes):
        holds = np.array([label in sample.labels for sample in samples], dtype=int)
        if min(holds.sum(), (1 - holds).sum()) < FOLDS:
            continue
        scores = _out_of_fold(x, holds)
        for row in np.flatnonzero(_doubted(holds, scores) & (scores.argmax(axis=1) != holds)).tolist():
            doubts.setdefault(row, []).append((label, float(scores[row, holds[row]])))
    errors = []
    for row, doubted in doubts.items():
        labels = samples[row].labels
        suggested = tuple(sorted(set(labels) ^ {label for label, _ in doubted}))
        errors.append(LabelError(samples[row], labels, suggested, min(score for _, score in doubted)))
    return errors


def _out_of_fold(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (N, classes) the scores of each row by a regression that has not seen it."""
    # The imports take a second, which commands that judge no labels need not wait for.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    with warnings.catch_warnings():
        # Stopped early it ranks the labels as well as it would later.
        warnings.simplefilter("ignore", ConvergenceWarning)
        regression = LogisticRegression(C=_C, max_iter=_STEPS)
        return np.asarray(cross_val_predict(regression, x, labels, cv=folds, method="predict_proba"))


def _doubted(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    from cleanlab.filter import find_label_issues

    return np.asarray(find_label_issues(labels, scores, filter_by="prune_by_class", n_jobs=1), dtype=bool)
