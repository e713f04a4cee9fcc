"""How everything is drawn: a figure and its words, colours, axes, bands, names beside lines. Chosen once, here."""

from __future__ import annotations

import dataclasses

import numpy as np

from bilevel_rl import metrics as M
from bilevel_rl.report.collect import MethodRuns, Section

# Okabe and Ito's palette, its extremes moved to the middle so that every colour reads on white and on near-black.
COLOURS = ("#0a84c6", "#e08a00", "#0a9e73", "#d4582a", "#b36fa8", "#7d8590", "#a59100", "#4fb3d9")
DASHES = ("solid", "solid", "solid", "dash", "dash", "dot", "dashdot", "dot")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
DECADES = 2  # ours: an axis of fewer has ticks at 2 and 5 too
BANDED = 48  # ours: points of a band's edge at most; what lies between is within a pixel or two
HEIGHT, LETTERS, NAME = 330, 16, 24  # pixels of a figure and of a line of text; letters of a name beside it
BAND = "Line: interquartile mean over {runs}; band: 95 % bootstrap interval."


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure with its words.

    Attributes:
        key: name of its file and of its element on the page.
        title, caption: words above and below.
        plot: a `plotly.graph_objects.Figure`.
        log_x, log_y: how it opens; the page's switches change both.
        wide: spans the page.
    """

    key: str
    title: str
    caption: str
    plot: object
    log_x: bool = False
    log_y: bool = False
    wide: bool = False


def colours(section: Section) -> dict[str, str]:
    """Label -> colour, the same in every figure of a section."""
    return {m.label: COLOURS[i % len(COLOURS)] for i, m in enumerate(section.methods)}


def counted(methods: list[MethodRuns]) -> str:
    """How many independent runs a caption speaks of."""
    counts = sorted({m.count for m in methods})
    return (
        f"{counts[0]} run{'s' if counts[0] > 1 else ''}"
        if len(counts) == 1
        else f"{counts[0]} to {counts[-1]} runs"
    )


def axis_text(metric: M.Metric) -> str:
    """Label and unit; a unit that the label already says is left out."""
    said = metric.unit in ("1", "") or metric.unit in metric.label
    return metric.label if said else f"{metric.label}, {metric.unit}"


def empty(go, x: str, y: str):
    """A figure with axes and nothing in it, in the page's style."""
    plot = go.Figure()
    axis = {
        "zeroline": False,
        "showline": False,
        "ticks": "",
        "gridcolor": "rgba(128,134,144,.22)",
        "automargin": True,
        "ticklabelstandoff": 5,
    }
    plot.update_layout(
        template="none", height=HEIGHT, margin={"l": 58, "r": 16, "t": 8, "b": 46}, showlegend=False, hovermode="closest",
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)",
        font={"family": FONT, "size": 13, "color": "#444b55"},
        xaxis={**axis, "title": {"text": x, "standoff": 8, "font": {"size": 13}}},
        yaxis={**axis, "title": {"text": y, "standoff": 6, "font": {"size": 13 if len(y) < 34 else 11}}},
    )  # fmt: skip
    return plot


def logarithmic(plot, values: np.ndarray) -> None:
    """Make the vertical axis logarithmic, with ticks that keep apart: 1, 2 and 5 over few decades, else powers of ten."""
    seen = np.asarray(values, float)
    seen = seen[np.isfinite(seen) & (seen > 0)]
    decades = float(np.log10(seen.max() / seen.min())) if seen.size else 1.0
    plot.update_yaxes(type="log", dtick="D2" if decades < DECADES else int(np.ceil(decades / 6)), exponentformat="power")


def beside(plot, words: list[tuple[float, str, str]], drawn: np.ndarray) -> None:
    """Names at the ends of lines, to the right of the axes, moved apart where lines end close together.

    Args:
        words: where a line ends (its logarithm on a logarithmic axis), its name, its colour.
        drawn: everything that is drawn, which says how much of the axis a line of text takes.
    """
    low, high = float(np.nanmin(drawn)), float(np.nanmax(drawn))
    room = apart([y for y, _, _ in words], low, high, (high - low or 1.0) * LETTERS / (HEIGHT - 54))
    short = [name if len(name) <= NAME else name[: NAME - 1] + "…" for _, name, _ in words]
    for y, name, (_, _, colour) in zip(room, short, words, strict=True):
        plot.add_annotation(
            x=1, xref="paper", y=y, text=f'<span style="color:{colour}">━</span> {name}', showarrow=False, xanchor="left",
            xshift=4, align="left", font={"size": 12},
        )  # fmt: skip
    plot.update_layout(margin={"r": 34 + 7 * max(map(len, short))})


def apart(values: list[float], low: float, high: float, gap: float) -> list[float]:
    """Values in their order, at least a gap from each other, moved as little as that takes and kept within the axis.

    Example:
        >>> apart([1.0, 1.0, 0.0], 0.0, 1.0, 0.1)
        [1.0, 0.9, 0.0]
    """
    order = sorted(range(len(values)), key=lambda i: (values[i], -i))
    placed = [values[i] for i in order]
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    top = max(high, values[order[-1]] if order else high)
    for i in reversed(range(len(placed))):
        placed[i] = min(placed[i], top - gap * (len(placed) - 1 - i))
    back = dict(zip(order, placed, strict=True))
    return [float(f"{back[i]:.6g}") for i in range(len(values))]


def band(plot, x: np.ndarray, low: np.ndarray, high: np.ndarray, colour: str, label: str) -> None:
    """Fill the space between two lines; it is shown and hidden with its method."""
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), BANDED)).round().astype(int))
    x, low, high = x[keep], low[keep], high[keep]
    plot.add_scatter(
        x=numbers(np.concatenate([x, x[::-1]])), y=numbers(np.concatenate([high, low[::-1]]), 4), fill="toself",
        mode="lines",
        fillcolor=fade(colour), line={"width": 0}, hoverinfo="skip", legendgroup=label, showlegend=False, name=label,
    )  # fmt: skip


def fade(colour: str) -> str:
    """A colour that lets what is behind it through."""
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},0.17)"


def numbers(values: np.ndarray, digits: int = 5) -> list[float | int | None]:
    """Numbers with five digits, whole ones without a point, NaN as gaps: a page stays small.

    Example:
        >>> numbers(np.array([1200.0, 0.123456, np.nan]))
        [1200, 0.12346, None]
    """
    short = [float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in np.asarray(values, float)]
    return [int(v) if v is not None and v.is_integer() else v for v in short]
