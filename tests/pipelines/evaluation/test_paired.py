"""Intervals of differences: against scipy's bootstrap, against known cases, and exact tests of flips."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from pipelines.evaluation.paired import bootstrap, count_flips, paired_difference


def mean_of(values):
    values = np.asarray(values, dtype=float)
    return lambda chosen: float(values[chosen].mean())


def test_the_interval_is_that_of_scipy():
    values = np.random.default_rng(1).normal(0.3, 1.0, 80)
    ours = bootstrap(mean_of(values), len(values))
    theirs = stats.bootstrap((values,), np.mean, method="percentile", n_resamples=4000, random_state=0)
    assert ours.value == pytest.approx(values.mean())
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03)
    assert bootstrap(mean_of(values), len(values)) == ours


def test_a_paired_difference_is_narrower_than_the_figures_allow_alone():
    base = np.random.default_rng(2).normal(0, 1, 100)
    moved = base + 0.2
    difference = paired_difference(mean_of(base), mean_of(moved), 100)
    assert difference.value == pytest.approx(0.2)
    assert difference.high - difference.low < 1e-9
    assert bootstrap(mean_of(base), 100).high - bootstrap(mean_of(base), 100).low > 0.3


def test_nineteen_of_twenty_intervals_hold_the_truth():
    generator = np.random.default_rng(3)
    held = 0
    for _ in range(60):
        interval = bootstrap(mean_of(generator.random(60) < 0.8), 60)
        held += interval.low <= 0.8 <= interval.high
    assert held >= 51


def test_nothing_to_measure_is_no_number():
    assert np.isnan(bootstrap(mean_of([]), 0).value)
    assert np.isnan(bootstrap(lambda chosen: float("nan"), 5).value)


def test_flips_are_counted_and_tested_exactly():
    before = [True] * 10 + [False] * 2 + [True] * 30
    after = [False] * 10 + [True] * 2 + [True] * 30
    flips = count_flips(before, after)
    assert (flips.broken, flips.fixed) == (10, 2)
    assert flips.p_value == pytest.approx(2 * stats.binom.cdf(2, 12, 0.5))
    assert count_flips(before, before).p_value == 1.0
    assert "10 broken, 2 fixed" in str(flips)
