"""Summaries over independent runs: interquartile mean, bootstrap intervals, profiles, probability of improvement.

SciPy's statistics take a second to import: the functions that need them import them, so that words come at once.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Interval(NamedTuple):
    """A point estimate with its interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def interquartile_mean(values: ArrayLike, axis: int = 0) -> np.ndarray:
    """Mean of the middle half (25 % trimmed on each side); NaN where there is one, or nothing.

    `scipy.stats.trim_mean` without the many looks at its arguments, which cost ten times the mean of a few runs.

    Example:
        >>> float(interquartile_mean([0.0, 1.0, 2.0, 100.0]))
        1.5

    References:
        Agarwal et al., "Deep RL at the edge of the statistical precipice", NeurIPS 2021.
    """
    values = np.asarray(values, float)
    runs = values.shape[axis]
    if not values.size:
        return np.full(np.delete(values.shape, axis), np.nan)[()]
    cut = runs // 4
    middle = np.partition(values, (cut, runs - cut - 1), axis).take(range(cut, runs - cut), axis)
    return np.where(np.isnan(values).any(axis), np.nan, middle.mean(axis))[()]


def bootstrap(values: ArrayLike, statistic=interquartile_mean, confidence: float = 0.95, seed: int = 0) -> Interval:
    """`statistic` of independent runs with its percentile-bootstrap interval (2,000 resamples).

    Args:
        values: [runs] one number a run.
        statistic: maps (array, axis) to the summary.
    """
    import scipy.stats

    values = np.asarray(values, float)
    point = float(statistic(values, axis=0))
    if values.size < 2 or not np.isfinite(values).all() or np.ptp(values) == 0:
        return Interval(point, point, point)
    interval = scipy.stats.bootstrap(
        (values,), statistic, n_resamples=2000, confidence_level=confidence, method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return Interval(point, float(interval.low), float(interval.high))


def bootstrap_curve(
    values: ArrayLike, confidence: float = 0.95, seed: int = 0, resamples: int = 1000
) -> np.ndarray:
    """Interquartile mean and percentile-bootstrap interval at every record; runs are resampled whole.

    Args:
        values: [runs, records].

    Returns:
        [3, records]: value, low, high.
    """
    values = np.asarray(values, float)
    runs = values.shape[0]
    point = interquartile_mean(values)
    if runs < 2:
        return np.stack([point, point, point])
    picks = np.random.default_rng(seed).integers(runs, size=(resamples, runs))
    cut = int(0.25 * runs)
    tail = 50 * (1 - confidence)
    with np.errstate(invalid="ignore"):  # a record with NaN has a NaN interval
        bounds = [
            np.percentile(np.sort(values[picks, record], axis=1)[:, cut : runs - cut].mean(axis=1), [tail, 100 - tail])
            for record in range(values.shape[1])
        ]
    return np.concatenate([point[None], np.array(bounds).T])


def success_rate(hits: ArrayLike, confidence: float = 0.95) -> Interval:
    """Fraction of runs that reached a target, with its exact (Clopper-Pearson) interval."""
    import scipy.stats

    hits = np.asarray(hits, bool)
    result = scipy.stats.binomtest(int(hits.sum()), int(hits.size)).proportion_ci(confidence, method="exact")
    return Interval(float(hits.mean()), float(result.low), float(result.high))


def samples_to_target(samples: ArrayLike, hits: ArrayLike) -> np.ndarray:
    """Samples at the first record from which a run stays at its target; infinite where it ends elsewhere.

    Args:
        samples: [runs, records].
        hits: [runs, records] whether the run is at its target.

    Returns:
        [runs].

    Example:
        >>> samples_to_target([[0, 10, 20, 30]], [[True, False, True, True]]).tolist()
        [20.0]
    """
    samples, hits = np.asarray(samples, float), np.asarray(hits, bool)
    stays = np.logical_and.accumulate(hits[:, ::-1], axis=1)[:, ::-1]
    first = samples[np.arange(len(samples)), stays.argmax(axis=1)]
    return np.where(stays.any(axis=1), first, np.inf)


def performance_profile(scores: ArrayLike, thresholds: ArrayLike) -> np.ndarray:
    """Fraction of runs whose score is at most each threshold (scores are losses: lower is better).

    Args:
        scores: [runs].
        thresholds: [T].

    Returns:
        [T].
    """
    return (np.asarray(scores, float)[:, None] <= np.asarray(thresholds, float)[None, :]).mean(axis=0)


def probability_of_improvement(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Probability that a run of ours has a lower loss than a run of theirs (ties count one half)."""
    import scipy.stats

    ours, theirs = np.asarray(ours, float), np.asarray(theirs, float)
    statistic = scipy.stats.mannwhitneyu(theirs, ours).statistic
    return float(statistic / (ours.size * theirs.size))


def readable(slope: Interval) -> bool:
    """Whether a slope can be told from noise: its interval reaches at most half its size (or .1) to each side.

    Example:
        >>> readable(Interval(1.0, 0.9, 1.1)), readable(Interval(-0.3, -0.9, 0.3))
        (True, False)
    """
    half = (slope.high - slope.low) / 2
    return bool(np.isfinite(slope.value) and half <= 0.5 * max(abs(slope.value), 0.2))


def slope_text(slope: Interval) -> str:
    """A slope with its interval, or that there is none to be read.

    Example:
        >>> slope_text(Interval(-0.3, -0.9, 0.3))
        'none: noise (fit -0.3 [-0.9, 0.3])'
    """
    return str(slope) if readable(slope) else f"none: noise (fit {slope})"


def log_log_slope(x: ArrayLike, y: ArrayLike) -> Interval:
    """Slope of log y against log x with its 95 % confidence interval (ordinary least squares)."""
    import scipy.stats

    x, y = np.log(np.asarray(x, float)), np.log(np.asarray(y, float))
    fit = scipy.stats.linregress(x, y)
    half = scipy.stats.t.ppf(0.975, max(np.size(x) - 2, 1)) * fit.stderr
    return Interval(float(fit.slope), float(fit.slope - half), float(fit.slope + half))


# -- few runs ------------------------------------------------------------------------------------------------


def mean_interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """The mean of a few runs with Student's t interval: right at small n where a percentile bootstrap is too short.

    Example:
        >>> print(mean_interval([1.0, 2.0, 3.0]))
        2 [-0.484, 4.48]
    """
    import scipy.stats

    values = np.asarray(values, float)
    mean = float(values.mean())
    if len(values) < 2:
        return Interval(mean, -np.inf, np.inf)
    error = float(values.std(ddof=1)) / np.sqrt(len(values))
    half = float(scipy.stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * error
    return Interval(mean, mean - half, mean + half)


def studentised(values: ArrayLike, confidence: float = 0.95, resamples: int = 1999, seed: int = 0) -> Interval:
    """The mean with a bootstrap interval of the t statistic, which follows a skewed law that Student's t does not.

    Samples that resample to a single value have no t statistic and are left out.

    Example:
        >>> found = studentised([1.0, 2.0, 3.0, 4.0, 8.0])
        >>> found.low < found.value < found.high
        True

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 12.5.
    """
    values = np.asarray(values, float)
    n, mean, spread = len(values), float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0
    if spread == 0:
        return Interval(mean, mean, mean) if n > 1 else Interval(mean, -np.inf, np.inf)
    drawn = values[np.random.default_rng(seed).integers(n, size=(resamples, n))]
    deviation = drawn.std(axis=1, ddof=1)
    t = (drawn.mean(axis=1) - mean)[deviation > 0] / (deviation[deviation > 0] / np.sqrt(n))
    low, high = np.quantile(t, [0.5 - confidence / 2, 0.5 + confidence / 2])
    error = spread / np.sqrt(n)
    return Interval(mean, float(mean - high * error), float(mean - low * error))


def paired_test(ours: ArrayLike, theirs: ArrayLike) -> float:
    """Two-sided p-value of the paired t-test on runs of the same seeds; 1 where all differences are 0.

    Example:
        >>> round(paired_test([1.0, 2.0, 3.0], [0.0, 1.5, 2.0]), 4)
        0.0377
    """
    import scipy.stats

    gap = np.asarray(ours, float) - np.asarray(theirs, float)
    if len(gap) < 2 or gap.std(ddof=1) == 0:
        return 1.0 if len(gap) < 2 or gap[0] == 0 else 0.0
    t = abs(float(gap.mean())) / (float(gap.std(ddof=1)) / np.sqrt(len(gap)))
    return float(2 * scipy.stats.t.sf(t, len(gap) - 1))


def holm(p_values: ArrayLike) -> np.ndarray:
    """Holm's adjusted p-values: below a level for all that may be claimed at that level, however many were tried.

    Example:
        >>> holm([0.01, 0.04, 0.03]).tolist()
        [0.03, 0.06, 0.06]

    References:
        Holm, A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of Statistics 6 (1979).
    """
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    out = np.empty_like(p)
    out[order] = np.minimum(steps, 1.0)
    return out


def coverage(interval, draw, truth: float, repeats: int = 2000) -> float:
    """Share of simulated samples whose interval holds the true mean.

    Args:
        interval: values [n] -> Interval.
        draw: random generator -> values [n].
        truth: the mean of what is drawn.
        repeats: number of samples.

    Example:
        >>> coverage(mean_interval, lambda rng: rng.normal(size=10), 0.0, repeats=400) > 0.9
        True
    """
    rng = np.random.default_rng(0)
    hits = [found.low <= truth <= found.high for found in (interval(draw(rng)) for _ in range(repeats))]
    return float(np.mean(hits))
