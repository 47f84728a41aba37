from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from safetensors.numpy import load, save
from sklearn.decomposition import PCA

from models.bundle import load_bundle, save_bundle
from models.errors import BundleError
from models.metrics.drift import (
    Counts,
    chi_square,
    compare_to_reference,
    kolmogorov_smirnov,
    kolmogorov_survival,
    population_stability,
)
from models.metrics.feature_distribution import fit_features
from models.metrics.observation import concentration
from models.observer import build_reference
from models.reference import REFERENCE_FILE, Observation, Reference, to_unit_length


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    return random.normal(1, 1, (90, 40)) * np.linspace(0.1, 2, 40)


@pytest.fixture
def reference(features):
    random = np.random.default_rng(1)
    observations = [
        Observation({"score": float(random.beta(5, 2)), "aspect": 1.5}, n % 3, n % 9 == 0, row)
        for n, row in enumerate(to_unit_length(features))
    ]
    return build_reference(observations, classes=3)


def test_the_distance_is_that_of_probabilistic_pca(features):
    """scikit-learn's covariance of the same model, inverted as a whole, gives the same distances."""
    distribution = fit_features(features)
    peer = PCA(n_components=len(distribution.variances), svd_solver="full").fit(to_unit_length(features))
    covariance = (
        peer.components_.T * (peer.explained_variance_ - distribution.residual_variance)
    ) @ peer.components_ + distribution.residual_variance * np.eye(40)
    offset = to_unit_length(features) - peer.mean_
    expected = np.sqrt(np.einsum("nd,de,ne->n", offset, np.linalg.inv(covariance), offset) / 40)
    assert np.allclose(distribution.distance(features), expected, rtol=1e-6)


def test_images_like_the_reference_are_unusual_no_more_often_than_the_percentile_says(features, reference):
    random = np.random.default_rng(5)
    others = random.normal(1, 1, (4000, 40)) * np.linspace(0.1, 2, 40)
    percentiles = [reference.percentile(reference.distance(row)) for row in others]
    assert np.mean(np.array(percentiles) >= 90) <= 0.13
    assert max(percentiles) < 100


def test_a_reference_comes_back_as_it_was(reference):
    back = Reference.from_bytes(reference.to_bytes(), classes=3)
    assert back.count == 90
    assert (back.maps, back.empty) == (90, 10)
    assert np.array_equal(back.figures["score"], reference.figures["score"])
    row = np.ones(40)
    assert back.distance(row) == pytest.approx(reference.distance(row), rel=1e-5)


def _with(change):
    def damage(data):
        arrays = dict(load(data))
        change(arrays)
        return save(arrays)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:50],
        lambda data: b"",
        _with(lambda arrays: arrays.pop("predicted")),
        _with(lambda arrays: arrays.update({"figure.shoe": np.ones(3)})),
        _with(lambda arrays: arrays.update({"figure.score": np.array([1.0, np.nan])})),
        _with(lambda arrays: arrays.update({"figure.score": np.array([2.0, 1.0])})),
        _with(lambda arrays: arrays.update({"figure.score": np.zeros(0)})),
        _with(lambda arrays: arrays.update({"features.variances": np.zeros(16)})),
        _with(lambda arrays: arrays.update({"features.mean": np.zeros(7, np.float32)})),
        _with(lambda arrays: arrays.update({"predicted": np.array([1, 2, 3, 4])})),
    ],
)
def test_a_damaged_reference_is_refused_by_name(reference, damage):
    with pytest.raises(BundleError, match=REFERENCE_FILE):
        Reference.from_bytes(damage(reference.to_bytes()), classes=3)


def test_a_bundle_carries_its_reference_and_notices_another(bundle_folder, reference, tmp_path):
    bundle = load_bundle(bundle_folder)
    assert bundle.reference is None
    save_bundle(bundle.model, tmp_path / "new", name="three", reference=reference)
    assert load_bundle(tmp_path / "new").reference.count == 90
    (tmp_path / "new" / REFERENCE_FILE).write_bytes(reference.to_bytes()[:-8] + b"\0" * 8)
    with pytest.raises(BundleError, match="does not have the digest"):
        load_bundle(tmp_path / "new")


def test_the_tests_agree_with_scipys():
    random = np.random.default_rng(2)
    own, before = random.integers(20, 60, 12), random.integers(20, 60, 12)
    statistic, p_value = chi_square(own, before)
    peer = scipy.stats.chi2_contingency(np.stack([own, before]), correction=False)
    assert (peer.expected_freq >= 5).all()
    assert (statistic, p_value) == pytest.approx((peer.statistic, peer.pvalue))
    for scaled in (0.3, 0.8, 1.36, 2.2):
        assert kolmogorov_survival(scaled) == pytest.approx(scipy.stats.kstwobign.sf(scaled), abs=1e-9)
    one, other = random.integers(0, 8, 200), random.integers(0, 9, 300)
    counted = [np.bincount(values, minlength=9) for values in (one, other)]
    assert kolmogorov_smirnov(*counted)[0] == pytest.approx(scipy.stats.ks_2samp(one, other).statistic)


def test_stability_is_zero_for_equal_shares_and_the_sum_by_hand_for_others():
    assert population_stability(np.array([10, 20]), np.array([100, 200])) == pytest.approx(0, abs=1e-3)
    own, before = np.array([30.5, 10.5]), np.array([10.5, 30.5])
    p, q = own / own.sum(), before / before.sum()
    by_hand = sum((p - q) * np.log(p / q))
    assert population_stability(np.array([30, 10]), np.array([10, 30])) == pytest.approx(by_hand)


def test_counts_can_be_added_and_say_what_differs(reference, features):
    random = np.random.default_rng(3)
    whole, parts = Counts(reference), [Counts(reference), Counts(reference)]
    for n in range(120):
        row = features[n % 90]
        item = Observation(
            {"score": float(random.beta(2, 5)), "aspect": 1.5}, 0, False, to_unit_length(row[None])[0]
        )
        whole.add(item)
        parts[n % 2].add(item)
    total = Counts(reference)
    for part in parts:
        total.add_counts(part.to_dict())
    assert total.images == 120
    assert np.array_equal(total.figures["score"], whole.figures["score"])
    alarms = {result.figure for result in compare_to_reference(total, reference) if result.alarm}
    assert {"score", "predicted classes"} <= alarms
    assert not {"aspect", "features"} & alarms


def test_a_value_that_never_varied_drifts_when_it_does(reference):
    counts = Counts(reference)
    for _ in range(100):
        counts.add(Observation({"aspect": 0.7}, 0))
    rows = {result.figure: result for result in compare_to_reference(counts, reference)}
    assert rows["aspect"].alarm
    assert not rows["score"].enough


def test_concentration_is_zero_for_an_even_map_and_one_for_a_single_cell():
    assert concentration(np.ones((7, 7))) == pytest.approx(0)
    assert concentration(np.eye(1, 49)) == pytest.approx(1)
