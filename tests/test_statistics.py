"""Summaries over runs against their definitions, and intervals against their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from bilevel_rl import statistics as S


def test_interquartile_mean_by_hand():
    assert S.interquartile_mean([9.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -7.0]) == pytest.approx(
        (2 + 3 + 4 + 5) / 4
    )


def test_bootstrap_interval_covers_the_truth():
    """95 % intervals of 40 runs hold the true mean in 90 to 99 % of 200 repetitions."""
    rng = np.random.default_rng(0)
    hits = 0
    for repeat in range(200):
        interval = S.bootstrap_curve(rng.normal(1.0, 2.0, size=(40, 1)), seed=repeat, resamples=400)[:, 0]
        hits += interval[1] <= 1.0 <= interval[2]
    assert 180 <= hits <= 198


def test_curve_agrees_with_bootstrap_at_every_record():
    values = np.random.default_rng(1).normal([0, 5, 10], size=(30, 3))
    curve = S.bootstrap_curve(values, resamples=4000)
    for record in range(3):
        one = S.bootstrap(values[:, record])
        assert curve[0, record] == pytest.approx(one.value)
        width = one.high - one.low
        assert abs(curve[1, record] - one.low) < 0.1 * width
        assert abs(curve[2, record] - one.high) < 0.1 * width


def test_one_run_has_no_interval():
    np.testing.assert_array_equal(S.bootstrap_curve([[1.0, 2.0]]), [[1, 2]] * 3)
    assert S.bootstrap([3.0]) == (3.0, 3.0, 3.0)


def test_success_rate_is_clopper_pearson():
    rate = S.success_rate([True] * 30)
    assert rate.value == 1
    assert rate.low == pytest.approx(0.025 ** (1 / 30))
    assert rate.high == 1


def test_samples_to_target_asks_to_stay():
    samples = np.tile([0, 10, 20, 30], (4, 1))
    hits = [[0, 1, 1, 1], [1, 0, 0, 1], [1, 1, 1, 0], [1, 1, 1, 1]]
    assert S.samples_to_target(samples, hits).tolist() == [10, 30, np.inf, 0]


def test_performance_profile_counts_runs():
    np.testing.assert_allclose(S.performance_profile([1.0, 2.0, 3.0, 4.0], [0.5, 2.0, 9.0]), [0, 0.5, 1])


def test_probability_of_improvement_counts_pairs():
    ours, theirs = [1.0, 2.0, 3.0], [2.0, 4.0]
    pairs = [(a < b) + 0.5 * (a == b) for a in ours for b in theirs]
    assert S.probability_of_improvement(ours, theirs) == pytest.approx(np.mean(pairs))


def test_log_log_slope_recovers_a_power():
    x = np.geomspace(1e-3, 1, 12)
    slope = S.log_log_slope(x, 3 * x**1.5)
    assert slope.value == pytest.approx(1.5)
    noisy = S.log_log_slope(x, 3 * x**1.5 * np.exp(np.random.default_rng(0).normal(0, 0.1, 12)))
    assert noisy.low < 1.5 < noisy.high
    assert noisy.high - noisy.low < 0.3


def test_interquartile_mean_is_the_trimmed_mean():
    values = np.random.default_rng(3).normal(size=(31, 4))
    np.testing.assert_allclose(S.interquartile_mean(values), scipy.stats.trim_mean(values, 0.25))
