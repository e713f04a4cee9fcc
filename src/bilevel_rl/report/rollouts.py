"""A path of an agent in its environment, from frames: walls, goals, lines and points, pale at first and dark at last."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

SHOWN = 24  # ours: frames of lines that still tell one from another
COLOUR = "10, 132, 198"  # figures.COLOURS[0]


def draw(go: Any, frames: Mapping[str, np.ndarray]) -> Any:
    """A Plotly figure of frames.

    Args:
        go: `plotly.graph_objects`.
        frames: `segments` [T, k, 2], `points` [T, n, 2], `bars` [T, n, 2], `goals` [T, n, 2], `walls` [T, rows, columns].

    Returns:
        Axes of equal units; of bars, heights over time.
    """
    axis = {"zeroline": False, "gridcolor": "rgba(128,134,144,.22)", "automargin": True, "ticklabelstandoff": 5}
    plot = go.Figure(layout={
        "template": "none", "showlegend": False, "margin": {"l": 40, "r": 20, "t": 20, "b": 40}, "height": 330,
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "xaxis": axis, "yaxis": axis,
    })  # fmt: skip
    if "bars" in frames:
        for i in range(frames["bars"].shape[1]):
            plot.add_scatter(y=frames["bars"][:, i, 1].round(3).tolist(), mode="lines", name=str(i))
        return plot
    if "walls" in frames:
        for row, column in np.argwhere(frames["walls"][0]):
            r, c = float(row), float(column)
            plot.add_shape(type="rect", x0=c - 0.5, x1=c + 0.5, y0=r - 0.5, y1=r + 0.5, fillcolor="#8a8f98", line_width=0,
                           layer="below")  # fmt: skip
    for name in ("segments", "points"):
        if name in frames:
            _lines(plot, name, frames[name], swap="walls" in frames)
    if "goals" in frames:
        goals = frames["goals"][-1]
        _marks(plot, goals[:, ::-1] if "walls" in frames else goals, "x")
    plot.update_yaxes(scaleanchor="x", autorange="reversed" if "walls" in frames else True)
    return plot


def _lines(plot: Any, name: str, values: np.ndarray, swap: bool) -> None:
    """Lines of chosen frames; the track of points through all of them."""
    order = [1, 0] if swap else [0, 1]  # a place in a maze is row and column
    if name == "points":
        for i in range(values.shape[1]):
            x, y = values[:, i, order].round(3).T.tolist()
            plot.add_scatter(x=x, y=y, mode="lines+markers", line={"color": f"rgba({COLOUR}, .7)"}, marker={"size": 4})
        return
    chosen = np.unique(np.linspace(0, len(values) - 1, min(SHOWN, len(values))).astype(int))
    for rank, t in enumerate(chosen):
        x, y = values[t][:, order].round(3).T.tolist()
        shade = 0.15 + 0.85 * rank / max(1, len(chosen) - 1)
        plot.add_scatter(x=x, y=y, mode="lines", line={"color": f"rgba({COLOUR}, {shade:.2f})", "width": 2})


def _marks(plot: Any, places: np.ndarray, symbol: str) -> None:
    x, y = places.round(3).T.tolist()
    plot.add_scatter(x=x, y=y, mode="markers", marker={"symbol": symbol, "size": 12, "color": "#d4582a"})
