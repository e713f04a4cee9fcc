"""One trace as one figure, for a notebook or a paper: `bilevel_rl.report.plot(trace)`."""

from __future__ import annotations

from typing import Any

import numpy as np

from bilevel_rl import metrics as M
from bilevel_rl.errors import InvalidConfig, did_you_mean, message, require
from bilevel_rl.report import style
from bilevel_rl.statistics import bootstrap_curve


def plot(trace: Any, axis: Any = None, metric: str = "objective", label: str = "") -> Any:
    """Draw a metric of a trace against samples: interquartile mean over runs with its 95 % bootstrap band.

    Args:
        trace: what `solve` returned, or anything with `metrics`.
        axis: axes of Matplotlib to draw on; by default a Plotly figure is made, with the extra `report`.
        metric: a key of the trace, such as `"gap"`.
        label: of the line.

    Returns:
        The axes, or the Plotly figure.

    Raises:
        InvalidConfig: the trace has no such metric.
        MissingDependency: without Plotly, when no axes are given.

    Example:
        >>> from types import SimpleNamespace
        >>> seen = SimpleNamespace(metrics={"samples": np.array([[0, 10.0]]), "objective": np.array([[1.0, 0.5]])})
        >>> [float(v) for v in plot(seen).data[-1].y]
        [1.0, 0.5]
    """
    if metric not in trace.metrics:
        known = did_you_mean(metric, trace.metrics)
        raise InvalidConfig(message("report.plot", f"the metric {metric!r}", known, "Name one of these"))
    word = "samples" if trace.metrics["samples"].any() or "iteration" not in trace.metrics else "iteration"
    x = np.mean(trace.metrics[word], axis=0)
    value, low, high = bootstrap_curve(trace.metrics[metric])
    about = M.BY_KEY.get(metric)
    words = (word, metric if about is None else style.axis_text(about))
    if axis is not None:
        axis.fill_between(x, low, high, alpha=0.17, linewidth=0)
        axis.plot(x, value, label=label or None)
        axis.set_xlabel(words[0])
        axis.set_ylabel(words[1])
        return axis
    go = require("plotly.graph_objects", "report")
    made = style.empty(go, *words)
    colour = style.COLOURS[0]
    style.band(made, x, low, high, colour, label)
    made.add_scatter(x=style.numbers(x), y=style.numbers(value), name=label, mode="lines", line={"color": colour})
    return made
