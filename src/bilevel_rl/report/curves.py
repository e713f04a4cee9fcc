"""A metric against samples, and one metric against another: what most figures are."""

from __future__ import annotations

import numpy as np

from bilevel_rl import metrics as M
from bilevel_rl.errors import require
from bilevel_rl.report.collect import MethodRuns, Section
from bilevel_rl.report.style import (
    BAND,
    COLOURS,
    DASHES,
    Figure,
    axis_text,
    band,
    colours,
    counted,
    empty,
    logarithmic,
    numbers,
)
from bilevel_rl.statistics import bootstrap_curve


def curves(
    section: Section, metric: M.Metric, title: str, caption: str, log_y: bool = False
) -> Figure | None:
    """Interquartile mean and band of a metric against samples, one line a method."""
    found = [m for m in section.methods if metric.key in m.trace and np.isfinite(m.trace[metric.key]).any()]
    if not found:
        return None
    go = require("plotly.graph_objects", "report")
    word = "tokens" if section.kind == "llm" else "samples"
    plot = empty(go, word, axis_text(metric))
    floor = floor_of(found, metric.key) if log_y else -np.inf
    below = []
    widest = max((m.trace["samples"].mean(axis=0)[-1] for m in found), default=1.0) or 1.0
    for i, m in enumerate(section.methods):
        if m not in found:
            continue
        colour, dash = COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)]
        x = m.trace["samples"].mean(axis=0)
        value, low, high = bootstrap_curve(m.trace[metric.key])
        good = np.isfinite(value)
        x, value, low, high = x[good], value[good], low[good], high[good]
        hover = f"{m.label}: %{{y:.3g}} at %{{x:,.0f}} {word}<extra></extra>"
        if m.model_based:  # no samples: its last value, all along
            x, value, low, high = np.array([0, widest]), *(np.repeat(v[-1:], 2) for v in (value, low, high))
            dash, hover = "dot", f"{m.label} (uses the model): %{{y:.3g}}<extra></extra>"
        if m.model_based and value[-1] < floor:
            below.append(f"{m.label} (uses the model) lies below the axis, at {value[-1]:.1g}.")
            continue
        value, low, high = (np.maximum(v, floor) for v in (value, low, high))
        if m.count > 1 and not m.model_based:
            band(plot, x, low, high, colour, m.label)
        plot.add_scatter(
            x=numbers(x), y=numbers(value), name=m.label, mode="lines", legendgroup=m.label,
            line={"color": colour, "width": 2.2, "dash": dash}, hovertemplate=hover,
        )  # fmt: skip
    if log_y:
        logarithmic(plot, np.array([v for t in plot.data if t.fill != "toself" for v in t.y], float))
    else:
        plot.update_yaxes(exponentformat="power", nticks=6)
    words = " ".join([caption, BAND.format(runs=counted(found)), *below])
    return Figure(metric.key, title, words, plot, log_y=log_y)


def paths(section: Section, x_key: str, y_key: str, title: str, caption: str, first: int = 0) -> Figure | None:
    """One metric against another, in time, smoothed over a tenth of the run.

    Args:
        first: record to begin with.
    """
    found = [
        m for m in section.methods if {x_key, y_key} <= m.trace.keys() and np.isfinite(m.trace[y_key]).any()
    ]
    if not found:
        return None
    go = require("plotly.graph_objects", "report")
    x_metric, y_metric = M.BY_KEY[x_key], M.BY_KEY[y_key]
    plot = empty(go, axis_text(x_metric), axis_text(y_metric))
    for m in found:
        colour = colours(section)[m.label]
        x, y = (smooth(mean(m.trace[k], axis=0)[min(first, m.trace[k].shape[1] - 1) :]) for k in (x_key, y_key))
        good = np.isfinite(x) & np.isfinite(y)
        x, y = x[good], y[good]
        plot.add_scatter(
            x=numbers(x), y=numbers(y), name=m.label, mode="lines", legendgroup=m.label,
            line={"color": colour, "width": 2.2},
            hovertemplate=f"{m.label}: {y_metric.label} %{{y:.3g}}, {x_metric.label} %{{x:.3g}}<extra></extra>",
        )  # fmt: skip
        for at, symbol in ((0, "circle-open"), (-1, "circle")):
            plot.add_scatter(
                x=[float(x[at])], y=[float(y[at])], mode="markers", legendgroup=m.label, showlegend=False, name=m.label,
                marker={"color": colour, "size": 9, "symbol": symbol, "line": {"width": 2}}, hoverinfo="skip",
            )  # fmt: skip
        if m.count > 1:
            ends = [mean(m.trace[k][:, -max(1, m.trace[k].shape[1] // 10) :], axis=1) for k in (x_key, y_key)]
            plot.add_scatter(
                x=numbers(ends[0]), y=numbers(ends[1]), mode="markers", legendgroup=m.label, showlegend=False, name=m.label,
                marker={"color": colour, "size": 5, "opacity": 0.6}, hovertemplate=f"{m.label}: one seed<extra></extra>",
            )  # fmt: skip
    caption = f"{caption} Mean over {counted(found)}, smoothed over a tenth of the run; small dots: the single seeds' ends."
    return Figure(f"{y_key}-{x_key}", title, caption, plot)


def floor_of(methods: list[MethodRuns], key: str) -> float:
    """Lowest value worth an axis: a tenth of the lowest that a sampling method reaches on average after its first record."""
    sampled = [m for m in methods if not m.model_based]
    if not sampled:
        return 1e-12
    averages = [mean(m.trace[key], axis=0) for m in sampled]
    lows = [np.nanmin(np.maximum(v[1:] if len(v) > 1 else v, 1e-12)) for v in averages]  # both followers begin alike
    return 0.1 * float(min(lows))


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred running mean over a tenth of the series; the ends use what there is.

    Example:
        >>> smooth(np.arange(4.0)).tolist()
        [0.0, 1.0, 2.0, 3.0]
    """
    half = max(0, len(values) // 20)
    return np.array([mean(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])


def mean(values: np.ndarray, axis: int | None = None) -> np.ndarray:
    """Mean of the numbers that are there; NaN, without a warning, where there is none."""
    values = np.asarray(values, float)
    there = np.isfinite(values)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0).sum(axis) / there.sum(axis)
