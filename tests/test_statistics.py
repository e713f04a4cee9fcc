"""Summaries over runs against their definitions, and intervals against their coverage."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

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
    assert np.isnan(S.interquartile_mean([*values.ravel(), np.nan]))


# -- few runs -----------------------------------------------------------------------------------------------


def test_students_interval_covers_at_ten_runs_and_the_percentile_bootstrap_does_not():
    normal = lambda rng: rng.normal(size=10)  # noqa: E731
    percentile = lambda values: S.bootstrap(values, statistic=np.mean)  # noqa: E731
    wanted, error = 0.95, 4 * np.sqrt(0.95 * 0.05 / 600)
    assert abs(S.coverage(S.mean_interval, normal, 0.0, repeats=600) - wanted) < error
    assert S.coverage(percentile, normal, 0.0, repeats=300) < 0.93
    skewed = lambda rng: rng.exponential(size=10)  # noqa: E731
    by_t = S.coverage(S.mean_interval, skewed, 1.0, repeats=300)
    resampled = lambda values: S.studentised(values, resamples=499)  # noqa: E731
    assert S.coverage(resampled, skewed, 1.0, repeats=300) > by_t


def test_intervals_of_one_run_or_equal_runs():
    assert S.mean_interval([3.0]) == (3.0, -np.inf, np.inf)
    assert S.studentised([3.0]) == (3.0, -np.inf, np.inf)
    assert S.mean_interval([2.0, 2.0]) == S.studentised([2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_paired_test_and_holm_are_scipys_and_statsmodels_definition():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=8), rng.normal(size=8)
    assert S.paired_test(a, b) == pytest.approx(scipy.stats.ttest_rel(a, b).pvalue)
    assert S.paired_test(a, a) == 1.0
    assert S.paired_test(a + 1.0, a) < 1e-12
    p = np.array([0.04, 0.001, 0.5, 0.012])
    # smallest times 4, next times 3, ... never decreasing, at most 1
    assert S.holm(p).tolist() == pytest.approx([0.08, 0.004, 0.5, 0.036])
    assert S.holm([]).tolist() == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_is_never_smaller_than_the_p_value_and_keeps_its_order(values):
    p, adjusted = np.array(values), S.holm(values)
    assert (adjusted >= p).all()
    assert (adjusted <= 1).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()
