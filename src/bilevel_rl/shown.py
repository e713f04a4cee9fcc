"""What a trace says of itself: its answer x, five lines, a table for a notebook, a data frame.

Functions of plain arrays: metrics by key [runs, records], x [runs, records, d], status [runs]; engines call them.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bilevel_rl import statistics
from bilevel_rl.errors import require

MANY = 6  # ours: coordinates shown on one line


def names(given: Sequence[str], d: int) -> list[str]:
    """Names of the d upper variables: the given ones, or x, or x[0], x[1], ...

    Example:
        >>> names((), 2), names(("toll",), 1), names((), 1)
        (['x[0]', 'x[1]'], ['toll'], ['x'])
    """
    if len(given) == d:
        return list(map(str, given))
    return ["x"] if d == 1 else [f"x[{i}]" for i in range(d)]


def best_run(metrics: Mapping[str, np.ndarray], status: np.ndarray) -> int | None:
    """The run that ends lowest in the exact objective, among those that did not stop; None where none is graded."""
    if "objective" not in metrics and "outcome" in metrics:  # nothing is graded: what the leader got along the run
        metrics = {**metrics, "objective": -np.asarray(metrics["outcome"])}
    if "objective" not in metrics:
        return None
    final = np.where(np.asarray(status) == 0, metrics["objective"][:, -1], np.inf)
    return int(np.argmin(final)) if np.isfinite(final).any() else None


def best_x(metrics: Mapping[str, np.ndarray], x: np.ndarray, status: np.ndarray) -> np.ndarray:
    """[d] x at the end of the best run; where runs are not graded, the median over runs of each coordinate."""
    best = best_run(metrics, status)
    return np.median(x[:, -1], axis=0) if best is None else x[best, -1]


def final_x(x: np.ndarray) -> list[statistics.Interval]:
    """Interquartile mean over runs of each coordinate at the end, with its interval."""
    return [statistics.bootstrap(column) for column in x[:, -1].T]


def lines(
    metrics: Mapping[str, np.ndarray], x: np.ndarray, status: np.ndarray, given: Sequence[str]
) -> list[tuple[str, str]]:
    """Five (word, value) lines: size, samples, objective, gap or stationarity, x."""
    runs, count, d = x.shape
    stopped = int((np.asarray(status) != 0).sum())
    size = f"{runs} runs, {count} records" + (f", {stopped} stopped by a non-finite value" if stopped else "")
    found = [("Trace", size), ("samples", f"{metrics['samples'][:, -1].mean():,.0f} a run")]
    for key in ("objective", "gap" if "gap" in metrics else "gradient_norm"):
        value = f"{_first(metrics[key])} → {statistics.bootstrap(metrics[key][:, -1])}" if key in metrics else "not graded"
        found.append((key, value))
    at = best_x(metrics, x, status)
    words = ", ".join(f"{name} {value:.4g}" for name, value in zip(names(given, d), at, strict=True) if name)
    many = ", ".join(f"{value:.4g}" for value in at[:MANY])
    return [*found, ("best x", words if d <= MANY else f"({many}, ... {d} numbers)")]


def _first(series: np.ndarray) -> str:
    return f"{np.mean(series[:, 0]):.3g}"


def text(*parts: Any) -> str:
    """The five lines."""
    return "\n".join(f"{word:<14}{value}" for word, value in lines(*parts))


def table(*parts: Any) -> str:
    """The five lines as an HTML table, for a notebook."""
    left = "style='text-align:left'"
    rows = "".join(f"<tr><th {left}>{html.escape(a)}</th><td {left}>{html.escape(b)}</td></tr>" for a, b in lines(*parts))
    return f"<table>{rows}</table>"


def dataframe(metrics: Mapping[str, np.ndarray], x: np.ndarray, status: np.ndarray, given: Sequence[str]) -> Any:
    """A pandas DataFrame with a row for each run and record: metrics, x by name, and whether the run stopped.

    Raises:
        MissingDependency: without pandas.
    """
    pandas = require("pandas", "pandas")
    runs, count, d = x.shape
    columns = {"run": np.repeat(np.arange(runs), count), "record": np.tile(np.arange(count), runs)}
    columns |= {key: np.asarray(value).reshape(runs * count) for key, value in metrics.items()}
    columns |= {name: x[:, :, i].reshape(-1) for i, name in enumerate(names(given, d))}
    return pandas.DataFrame(columns | {"stopped": np.repeat(np.asarray(status) != 0, count)})
