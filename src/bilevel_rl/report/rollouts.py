"""A path of an agent in its environment, from frames: walls, goals, lines and points, pale at first and dark at last.

Of an environment that draws itself: its pictures in a row; of one that does not: what was observed, over time.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

SHOWN = 24  # ours: frames of lines that still tell one from another
COLOUR = "10, 132, 198"  # style.COLOURS[0]


def draw(go: Any, frames: Mapping[str, np.ndarray]) -> Any:
    """A Plotly figure of frames.

    Args:
        go: `plotly.graph_objects`.
        frames: `segments` [T, k, 2], `points` [T, n, 2], `bars` [T, n, 2], `goals` [T, n, 2], `walls` [T, rows, columns];
            or `images` [F, h, w, 3] of bytes, `curves` [T, n].

    Returns:
        Axes of equal units; of bars and curves, heights over time; of images, a row.
    """
    axis = {"zeroline": False, "gridcolor": "rgba(128,134,144,.22)", "automargin": True, "ticklabelstandoff": 5}
    plot = go.Figure(layout={
        "template": "none", "showlegend": False, "margin": {"l": 40, "r": 20, "t": 20, "b": 40}, "height": 330,
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "xaxis": axis, "yaxis": axis,
    })  # fmt: skip
    if "images" in frames:
        return _row(plot, frames["images"])
    if "curves" in frames:
        for i, values in enumerate(frames["curves"].T):
            plot.add_scatter(y=values.round(4).tolist(), mode="lines", name=f"observation {i}")
        return plot.update_layout(showlegend=True)
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


def _row(plot: Any, images: np.ndarray) -> Any:
    """Pictures side by side, first one left."""
    tall = images.shape[1] / images.shape[2]
    for i, image in enumerate(images):
        place = {"x": i, "y": 0, "sizex": 0.98, "sizey": tall, "xref": "x", "yref": "y", "xanchor": "left"}
        plot.add_layout_image(source=png(image), yanchor="bottom", layer="above", **place)
    plot.update_xaxes(range=[0, len(images)], visible=False)
    return plot.update_yaxes(range=[0, tall], visible=False, scaleanchor="x").update_layout(height=180)


def png(image: np.ndarray) -> str:
    """A picture [h, w, 3] of bytes, as the address of a PNG that holds it.

    Example:
        >>> png(np.zeros((1, 1, 3), np.uint8))[:30]
        'data:image/png;base64,iVBORw0K'
    """
    height, width = image.shape[:2]
    lines = b"".join(b"\0" + row.tobytes() for row in np.ascontiguousarray(image))  # 0: rows as they are
    parts = (b"IHDR", struct.pack(">2I5B", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")
    chunks = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunks)).decode()


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
