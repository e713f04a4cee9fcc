"""The answer x as figures, for any number of upper variables: along the run, and where it ends."""

from __future__ import annotations

import numpy as np

from bilevel_rl.errors import require
from bilevel_rl.report.collect import MethodRuns, Section
from bilevel_rl.report.style import BAND, COLOURS, Figure, band, beside, colours, counted, empty, numbers
from bilevel_rl.statistics import bootstrap_curve

BANDS, LINES, MANY, BARRED = 3, 8, 12, 3  # ours: coordinates with bands, as lines, as columns; methods drawn as bars


def x_path(section: Section) -> Figure | None:
    """x against samples: one line a coordinate; every method where x has one coordinate, else the first method.

    Of many coordinates those are drawn that moved most.
    """
    found = [m for m in section.methods if m.trace.get("x", np.zeros((0, 0, 0))).shape[-1] >= 1]
    sampled = [m for m in found if not m.model_based] or found
    if not sampled:
        return None
    go = require("plotly.graph_objects", "report")
    names, word = sampled[0].names(), "iteration" if sampled[0].model_based else "samples"
    shown = sampled if len(names) == 1 else sampled[:1]
    moved = np.abs(np.nanmean(sampled[0].trace["x"][:, -1] - sampled[0].trace["x"][:, 0], axis=0))
    drawn = sorted(np.argsort(-moved, kind="stable")[:LINES])
    words_at: list[tuple[float, str, str]] = []
    plot = empty(go, word, names[0] if len(names) == 1 else "x")
    for m in shown:
        x = m.trace[word].mean(axis=0)
        for rank, i in enumerate(drawn):
            name = names[i]
            colour = colours(section)[m.label] if len(names) == 1 else COLOURS[rank % len(COLOURS)]
            value, low, high = bootstrap_curve(m.trace["x"][:, :, i])
            if m.count > 1 and len(names) <= BANDS:
                band(plot, x, low, high, colour, m.label)
            words = m.label if len(names) == 1 else name
            plot.add_scatter(
                x=numbers(x), y=numbers(value), name=words, mode="lines", legendgroup=m.label,
                line={"color": colour, "width": 2.2}, hovertemplate=f"{words} %{{y:.4g}}<extra></extra>",
            )  # fmt: skip
            if len(names) > 1:
                words_at.append((float(value[-1]), name, colour))
            if m is shown[0] and m.best_x is not None:
                plot.add_hline(y=m.best_x[i], line={"width": 1, "dash": "dot", "color": colour})
    if words_at:
        drawn_at = [t.y for t in plot.data if t.fill != "toself"] + [[s.y0] for s in plot.layout.shapes]
        beside(plot, words_at, np.concatenate([np.asarray(y, float) for y in drawn_at]))
    whose = "each method" if len(names) == 1 else shown[0].label
    spread = "Line: interquartile mean over {runs}; their spread at the end is under Where x ends."
    words = BAND if len(names) <= BANDS else spread
    best = " Dotted: the best known x." if shown[0].best_x is not None else ""
    which = f"The upper variables of {whose}." if len(names) <= LINES else (
        f"Of the {len(names)} upper variables of {whose}, the {LINES} that moved most."
    )  # fmt: skip
    return Figure("x", "The answer x", f"{which} {words.format(runs=counted(shown))}{best}", plot)


def endings(section: Section) -> Figure | None:
    """Where x ends, run by run: a point in the plane for two upper variables, else a column a variable; bars for many."""
    found = [m for m in section.methods if m.trace.get("x", np.zeros((0, 0, 0))).shape[-1] >= 1]
    if not found:
        return None
    go = require("plotly.graph_objects", "report")
    d = found[0].trace["x"].shape[-1]
    found = [m for m in found if m.trace["x"].shape[-1] == d]
    if d == 2:
        return _plane(go, section, found)
    return _columns(go, section, found) if d <= MANY else _bars(go, section, found)


def _columns(go, section: Section, found: list[MethodRuns]) -> Figure:
    """Final x by run: a column of dots for each variable, the methods side by side within it."""
    names = found[0].names()
    plot = empty(go, "", "x at the end")
    for j, m in enumerate(found):
        ends = m.trace["x"][:, -1]
        shift = (j - (len(found) - 1) / 2) * 0.7 / len(found)
        place = np.repeat(np.arange(len(names))[None] + shift, len(ends), axis=0)
        plot.add_scatter(
            x=numbers(place.ravel()), y=numbers(ends.ravel()), name=m.label, mode="markers", legendgroup=m.label,
            marker={"color": colours(section)[m.label], "size": 7, "opacity": 0.75, "line": {"width": 0}},
            hovertemplate=f"{m.label} %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    best = found[0].best_x
    if best is not None:
        plot.add_scatter(
            x=list(range(len(names))), y=numbers(np.asarray(best)), name="best known", mode="markers",
            hovertemplate="best known %{y:.4g}<extra></extra>",
            marker={"symbol": "line-ew", "size": 26, "line": {"width": 2, "color": "#c9a400"}},
        )  # fmt: skip
    plot.update_xaxes(tickmode="array", tickvals=list(range(len(names))), ticktext=names, range=[-0.6, len(names) - 0.4])
    caption = f"The upper variables at the end of each of {counted(found)}." + (" Bar: the best known x." if best else "")
    return Figure("endings", "Where x ends", caption, plot)


def _bars(go, section: Section, found: list[MethodRuns]) -> Figure:
    """Final x of many variables: a bar each, with its interval over runs, for the first methods."""
    shown = found[:BARRED]
    plot = empty(go, "upper variable", "x at the end")
    for m in shown:
        value, low, high = bootstrap_curve(m.trace["x"][:, -1])
        plot.add_bar(
            x=m.names(), y=numbers(value), name=m.label, legendgroup=m.label, marker={"color": colours(section)[m.label]},
            error_y={"type": "data", "symmetric": False, "array": numbers(high - value), "arrayminus": numbers(value - low),
                     "thickness": 1, "width": 0},
            hovertemplate=f"{m.label}, %{{x}}: %{{y:.4g}}<extra></extra>",
        )  # fmt: skip
    plot.update_layout(barmode="group")
    plot.update_xaxes(type="category", nticks=20)
    of = f" of the first {BARRED} methods" if len(found) > BARRED else ""
    count, runs = len(found[0].names()), counted(shown)
    caption = f"The {count} upper variables at the end{of}: interquartile mean over {runs}, 95 % interval."
    return Figure("endings", "Where x ends", caption, plot)


def _plane(go, section: Section, found: list[MethodRuns]) -> Figure:
    names = found[0].names()
    plot = empty(go, *names)
    for m in found:
        ends = m.trace["x"][:, -1]
        plot.add_scatter(
            x=numbers(ends[:, 0]), y=numbers(ends[:, 1]), name=m.label, mode="markers", legendgroup=m.label,
            marker={"color": colours(section)[m.label], "size": 7, "opacity": 0.75, "line": {"width": 0}},
            hovertemplate=f"{m.label} (%{{x:.3f}}, %{{y:.3f}})<extra></extra>",
        )  # fmt: skip
    start = found[0].trace["x"][0, 0]
    plot.add_scatter(
        x=[float(start[0])], y=[float(start[1])], name="start", mode="markers", hovertemplate="start<extra></extra>",
        marker={"symbol": "circle-open", "size": 12, "color": "#8a8f98", "line": {"width": 2}},
    )  # fmt: skip
    if found[0].best_x is not None:
        plot.add_scatter(
            x=[found[0].best_x[0]], y=[found[0].best_x[1]], name="optimum", mode="markers",
            hovertemplate="optimum<extra></extra>", marker={"symbol": "star", "size": 15, "color": "#c9a400"},
        )  # fmt: skip
    caption = f"The upper variable at the end of each of {counted(found)}. Ring: where x starts; star: the best known x."
    return Figure("endings", "Where x ends", caption, plot)
