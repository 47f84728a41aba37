"""What the validation images of a model are like, in figures, as its bundle keeps it: the reference that
later images are held against.

For each figure (:data:`FIGURES`) it holds sorted values, besides how often each class was predicted and the
distribution of the features, which says how unusual an image is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays, save as save_arrays

from models.errors import BundleError

REFERENCE_FILE = "reference.safetensors"
FIGURES: Mapping[str, str] = {
    "score": "score of the predicted class",
    "novelty": "distance of the features from those of the validation images",
    "concentration": "how gathered the evidence is: 0 spread evenly, 1 all in one cell",
    "border": "share of the evidence in the outermost cells",
    "centre_x": "centre of mass of the evidence, as a share of the width",
    "centre_y": "centre of mass of the evidence, as a share of the height",
    "brightness": "mean luminance of what the model sees, 0 to 1",
    "contrast": "standard deviation of the luminance",
    "sharpness": "standard deviation of the luminance's Laplacian, low where the image is blurred",
    "megapixels": "size of the image",
    "aspect": "width over height",
}
_MOST_VALUES = 512
"""Of a figure: order statistics at equal steps, where there are more."""
_MOST_COMPONENTS, _MOST_FEATURES = 256, 100_000
_MOST_CONTROL_CELLS = 1_000_000


@dataclass(frozen=True, slots=True)
class Observation:
    """One image in figures."""

    figures: Mapping[str, float]
    """Some of :data:`FIGURES`: those of the evidence need a map."""
    predicted: int
    """Index of the predicted class."""
    empty: bool | None = None
    """Whether there is no positive evidence; None where no map was made."""
    features: np.ndarray | None = field(default=None, repr=False, compare=False)
    """(D,) of unit length; None for a network that passes no map on."""


@dataclass(frozen=True)
class FeatureDistribution:
    """A normal distribution of features of unit length: the directions in which they vary most, and one
    variance for all others (probabilistic PCA, Tipping and Bishop 1999). Without their lengths, features tell
    other images apart better (Mueller and Hein 2025).
    """

    mean: np.ndarray = field(repr=False)
    """(D,)."""
    components: np.ndarray = field(repr=False)
    """(K, D), orthonormal."""
    variances: np.ndarray = field(repr=False)
    """(K,) along the components."""
    residual_variance: float
    """Along each of the other D - K directions."""
    total_variance: float
    total_square: float
    """Traces of the whole covariance and of its square, by which a shift of the mean is judged."""
    count: int
    """Images that it was fitted on."""

    def distance(self, features: np.ndarray) -> np.ndarray:
        """Return the Mahalanobis distance of each row of (N, D), per square root of D: about 1 for an image
        like those that it was fitted on. Raises BundleError for another D.
        """
        if features.shape[1:] != self.mean.shape:
            raise BundleError(
                f"{REFERENCE_FILE} is about {len(self.mean)} features; the model has {features.shape[1]}."
            )
        offset = to_unit_length(features) - self.mean
        along = offset @ self.components.T
        rest = np.maximum((offset**2).sum(axis=1) - (along**2).sum(axis=1), 0.0)
        squared = (along**2 / self.variances).sum(axis=1) + rest / self.residual_variance
        return np.asarray(np.sqrt(squared / len(self.mean)))


def to_unit_length(features: np.ndarray) -> np.ndarray:
    """Return the rows of (N, D), each divided by its length."""
    rows = features.astype(np.float64)
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


@dataclass(frozen=True)
class Reference:
    """The figures of a model's validation images."""

    figures: Mapping[str, np.ndarray] = field(repr=False)
    """Sorted values by the names of :data:`FIGURES`; a figure that the model has not is left out."""
    predicted: np.ndarray = field(repr=False)
    """(classes,) how often each was predicted."""
    maps: int
    empty: int
    """Images that were explained, and those of them without positive evidence."""
    features: FeatureDistribution | None
    """None for a network that passes no map on, or too few images."""
    control_maps: np.ndarray | None = field(default=None, repr=False)
    """(N, rows, cols) maps of some of the images, at most 1 in size: controls for the maps of others."""

    def distance(self, features: np.ndarray) -> float | None:
        """Return the distance of one image's features (D,); None where there is nothing to measure by.

        Raises BundleError for features of another network.
        """
        if self.features is None or "novelty" not in self.figures:
            return None
        return float(self.features.distance(features[None])[0])

    def percentile(self, distance: float) -> float:
        """Return the share, in percent, of validation images whose distance is below an image's, that image
        counted too: a conformal p-value, so that of images like them at most 1 in 100 is above 99.
        """
        values = self.figures["novelty"]
        nearer = np.searchsorted(values, distance, side="left") / len(values) * self.count
        return 100.0 * float(nearer) / (self.count + 1)

    @property
    def count(self) -> int:
        """Validation images that it was made of."""
        return int(self.predicted.sum())

    def to_bytes(self) -> bytes:
        """Return it as a safetensors file."""
        arrays = {f"figure.{name}": values for name, values in self.figures.items()}
        arrays["predicted"] = self.predicted.astype(np.int64)
        arrays["maps"] = np.array([self.maps, self.empty], np.int64)
        if self.control_maps is not None:
            arrays["control_maps"] = self.control_maps.astype(np.float32)
        if (features := self.features) is not None:
            totals = [features.total_variance, features.total_square, features.count]
            arrays |= {
                "features.mean": features.mean.astype(np.float32),
                "features.components": features.components.astype(np.float32),
                "features.variances": features.variances.astype(np.float64),
                "features.residual": np.array([features.residual_variance]),
                "features.totals": np.array(totals, np.float64),
            }
        return bytes(save_arrays({name: np.ascontiguousarray(value) for name, value in arrays.items()}))

    @classmethod
    def from_bytes(cls, data: bytes, *, classes: int) -> Reference:
        """Read what :meth:`to_bytes` wrote, for a model of so many classes; raises BundleError."""
        try:
            reference = cls._from_arrays(load_arrays(data))
        except (SafetensorError, ValueError, KeyError, RuntimeError, TypeError) as error:
            raise BundleError(f"{REFERENCE_FILE} is not a proper reference: {error!r}.") from error
        if reference.predicted.shape != (classes,) or reference.predicted.min(initial=0) < 0:
            raise BundleError(f"{REFERENCE_FILE} is not about the model's {classes} classes.")
        return reference

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> Reference:
        arrays = {name: _checked(name, value) for name, value in arrays.items()}
        figures = {
            name.removeprefix("figure."): value
            for name, value in arrays.items()
            if name.startswith("figure.")
        }
        for name, values in figures.items():
            if name not in FIGURES or values.ndim != 1 or not 1 <= len(values) <= _MOST_VALUES:
                raise ValueError(f"figure {name}")
            if (np.diff(values) < 0).any():
                raise ValueError(f"figure {name} is not sorted")
        # A file's names have no order of their own.
        figures = {name: figures[name] for name in FIGURES if name in figures}
        maps, empty = (int(value) for value in arrays["maps"])
        controls = arrays.get("control_maps")
        if controls is not None and (controls.ndim != 3 or controls.size > _MOST_CONTROL_CELLS):
            raise ValueError("the shape of the control maps")
        return cls(figures, arrays["predicted"], maps, empty, _read_features(arrays), controls)


def _checked(name: str, value: np.ndarray) -> np.ndarray:
    if not np.isfinite(value).all() or value.size > _MOST_COMPONENTS * _MOST_FEATURES:
        raise ValueError(f"{name} is not finite, or too large")
    return value if value.dtype == np.int64 else np.asarray(value, np.float64)


def _read_features(arrays: Mapping[str, np.ndarray]) -> FeatureDistribution | None:
    if "features.mean" not in arrays:
        return None
    mean, components = arrays["features.mean"], arrays["features.components"]
    variances, residual = arrays["features.variances"], float(arrays["features.residual"][0])
    shapes = (mean.ndim, components.shape, variances.shape)
    if shapes != (1, (len(variances), len(mean)), (len(variances),)) or len(mean) > _MOST_FEATURES:
        raise ValueError("the shapes of the features")
    total, square, count = (float(value) for value in arrays["features.totals"])
    if min(residual, total, square, count, *variances) <= 0:
        raise ValueError("a variance that is not above 0")
    return FeatureDistribution(mean, components, variances, residual, total, square, int(count))


def control_bank(reference: Reference | None) -> np.ndarray | None:
    """Return a reference's control maps; None without a reference, or where it was made before there were
    any.
    """
    return None if reference is None else reference.control_maps


def summarize_values(values: np.ndarray) -> np.ndarray:
    """Return the sorted values, or so many of them at equal steps that a reference can hold them."""
    values = np.sort(np.asarray(values, dtype=np.float64))
    if len(values) <= _MOST_VALUES:
        return values
    return np.asarray(values[np.linspace(0, len(values) - 1, _MOST_VALUES).round().astype(int)])
