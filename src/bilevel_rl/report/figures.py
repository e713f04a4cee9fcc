"""The figures of a section, as Plotly figures with their captions. Colours, bands and axes are chosen once, here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from bilevel_rl import metrics as M
from bilevel_rl.errors import require
from bilevel_rl.report import rollouts
from bilevel_rl.report.collect import MethodRuns, Section
from bilevel_rl.statistics import bootstrap_curve, performance_profile

# Okabe and Ito's palette, its extremes moved to the middle so that every colour reads on white and on near-black.
COLOURS = ("#0a84c6", "#e08a00", "#0a9e73", "#d4582a", "#b36fa8", "#7d8590", "#a59100", "#4fb3d9")
DASHES = ("solid", "solid", "solid", "dash", "dash", "dot", "dashdot", "dot")
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', sans-serif"
BANDED = 48  # ours: points of a band's edge at most; what lies between is within a pixel or two
HEIGHT, LETTERS, NAME = 330, 16, 24  # pixels of a figure and of a line of text; letters of a name beside it
BANDS, LINES, MANY, BARRED = 3, 8, 12, 3  # ours: coordinates with bands, as lines, as columns; methods drawn as bars
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


def of(section: Section) -> list[Figure]:
    """Every figure that this section's data allows."""
    makers: tuple[Callable[[Section], Figure | None], ...] = LLM if section.kind == "llm" else FINITE
    return [figure for make in makers if (figure := make(section)) is not None]


# -- finite problems ------------------------------------------------------------------------------------------------


def objective(section: Section) -> Figure | None:
    """The exact hyper-objective against samples."""
    best = section.methods[0].best
    said = "" if best is None else f" Thin line: the best known value, {best:.4g}."
    figure = curves(
        section, M.OBJECTIVE, "Objective", "The exact hyper-objective Φ_τ(x) of the current x." + said
    )
    if figure is not None and best is not None:
        figure.plot.add_hline(y=best, line={"width": 1, "color": "#8a8f98"})  # type: ignore[attr-defined]
    return figure


def gap(section: Section) -> Figure | None:
    """The optimality gap against samples."""
    return curves(section, M.GAP, "Optimality gap", "Φ_τ(x) less the best known value.", log_y=True)


def outcome(section: Section) -> Figure | None:
    """What the leader got along the run, where followers are networks."""
    return curves(
        section, M.OUTCOME, "Leader's outcome",
        "Mean over the last blocks of iterations of the leader's utility less the cost of x, from the follower's own steps.",
    )  # fmt: skip


def trade_off(section: Section) -> Figure | None:
    """What the leader gets against what the follower gets."""
    return paths(
        section, "follower_value", "objective", "Leader against follower",
        "Across: what its best answer to x is worth to the follower; upwards: the leader's loss, lower is better for it. "
        "Each line is a method in time, from the ring to the dot.",
    )  # fmt: skip


def speed(section: Section) -> Figure | None:
    """How fast the follower's answer has to move, where the leader watches it."""
    return curves(
        section, M.SPEED, "Speed of the follower's answer",
        "Nats by which the answer moves while the follower's critics forget; the gate keeps it below the leader's drift.",
        log_y=True,
    )  # fmt: skip


def gradient_error(section: Section) -> Figure | None:
    """The error of the method's own hyper-gradient."""
    return curves(
        section, M.GRADIENT_ERROR, "Hyper-gradient error",
        "Distance between the mean hyper-gradient at the method's current followers and the exact one, in the "
        "hyper-gradient's own unit: compare it with the norm of the exact one under Stationarity.", log_y=True,
    )  # fmt: skip


def lower_gap(section: Section) -> Figure | None:
    """Suboptimality of the follower."""
    return curves(
        section, M.LOWER_GAP, "Lower-level gap", "J_τ(x, π*) − J_τ(x, π) of the tracked follower.", log_y=True
    )


def gradient_norm(section: Section) -> Figure | None:
    """Norm of the exact hyper-gradient."""
    return curves(
        section, M.GRADIENT_NORM, "Stationarity", "Norm of the exact hyper-gradient |∇Φ_τ(x)|.", log_y=True
    )


def sequences(section: Section) -> Figure | None:
    """The five sequences of the first method that has them."""
    found = [m for m in section.methods if all(k in m.trace for k in ("zeta", "alpha", "beta", "w", "tau"))]
    if not found:
        return None
    go = require("plotly.graph_objects", "report")
    m = found[0]
    names = {
        "zeta": "ζ step of x",
        "alpha": "α step of actors",
        "beta": "β step of critics",
        "w": "w penalty",
        "tau": "τ entropy",
    }
    plot = empty(go, "iteration", "value")
    for i, (key, name) in enumerate(names.items()):
        x, y = m.trace["iteration"][0], m.trace[key][0]
        plot.add_scatter(
            x=numbers(x), y=numbers(y), name=name, mode="lines", line={"color": COLOURS[i], "width": 2},
            hovertemplate=f"{name} %{{y:.3g}}<extra></extra>",
        )  # fmt: skip
    beside(plot, [(float(np.log10(m.trace[key][0, -1])), name, COLOURS[i]) for i, (key, name) in enumerate(names.items())],
           np.log10([m.trace[key][0] for key in names]))  # fmt: skip
    plot.update_yaxes(type="log", nticks=6, exponentformat="power")
    caption = (
        f"The five sequences of {m.label} (run 1 of {m.count}). The theory asks for the order ζ ≪ α ≤ β ≪ w ≪ τ, read as "
        "how fast they fall."
    )
    return Figure("sequences", "The five sequences", caption, plot, log_y=True)


def profile(section: Section) -> Figure | None:
    """Fraction of runs below each final gap."""
    found = [m for m in section.methods if "gap" in m.trace and m.count > 1]
    if not found:
        return None
    go = require("plotly.graph_objects", "report")
    floor = _floor(found, "gap")
    finals = {m.label: np.maximum(m.trace["gap"][:, -1], floor) for m in found}
    low = min(v.min() for v in finals.values())
    thresholds = np.geomspace(low, max(max(v.max() for v in finals.values()), 2 * low), 160)
    plot = empty(go, "gap at the end, objective", "fraction of runs")
    for m in found:
        colour = colours(section)[m.label]
        plot.add_scatter(
            x=numbers(thresholds), y=numbers(performance_profile(finals[m.label], thresholds)), name=m.label, mode="lines",
            legendgroup=m.label, line={"color": colour, "width": 2, "shape": "hv"},
            hovertemplate=f"{m.label}: %{{y:.0%}} of runs end below %{{x:.2g}}<extra></extra>",
        )  # fmt: skip
    plot.update_yaxes(range=[-0.02, 1.04], tickformat=".0%")
    plot.update_xaxes(type="log")
    caption = (
        f"Every run counts: the fraction of {_runs(found)} whose final gap is at most the value on the axis."
    )
    return Figure("profile", "Performance profile", caption, plot, log_x=True)


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
        beside(plot, words_at, np.array([t.y for t in plot.data if t.fill != "toself"], float))
    whose = "each method" if len(names) == 1 else shown[0].label
    spread = "Line: interquartile mean over {runs}; their spread at the end is under Where x ends."
    words = BAND if len(names) <= BANDS else spread
    best = " Dotted: the best known x." if shown[0].best_x is not None else ""
    which = f"The upper variables of {whose}." if len(names) <= LINES else (
        f"Of the {len(names)} upper variables of {whose}, the {LINES} that moved most."
    )  # fmt: skip
    return Figure("x", "The answer x", f"{which} {words.format(runs=_runs(shown))}{best}", plot)


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
    caption = f"The upper variables at the end of each of {_runs(found)}." + (" Bar: the best known x." if best else "")
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
    count, runs = len(found[0].names()), _runs(shown)
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
    caption = f"The upper variable at the end of each of {_runs(found)}. Ring: where x starts; star: the best known x."
    return Figure("endings", "Where x ends", caption, plot)


# -- language models ------------------------------------------------------------------------------------------------


def gold(section: Section) -> Figure | None:
    """Gold score against tokens."""
    return curves(section, M.BY_KEY["gold"], "Gold score", "Mean gold score of the policy's completions.")


def gold_against_reward(section: Section) -> Figure | None:
    """Gold against learned reward: where they part, the reward model is being hacked."""
    return paths(
        section, "learned_reward", "gold", "Gold against learned reward",
        "Each line is a method in time, from the ring to the dot. Where it turns right without rising, the policy "
        "exploits the reward model.",
    )  # fmt: skip


def gold_against_kl(section: Section) -> Figure | None:
    """Gold against exact KL: what the score costs."""
    return paths(
        section, "kl", "gold", "Gold against KL",
        "Exact KL of the policy from the reference, in nats a completion: higher at equal KL is better.",
    )  # fmt: skip


def gold_against_length(section: Section) -> Figure | None:
    """Gold against length: whether the policy earns its score by writing more."""
    return paths(
        section, "length", "gold", "Gold against length",
        "Mean length of the completions in tokens. Where it turns right without rising, the policy writes more for nothing.",
    )  # fmt: skip


def gold_against_labels(section: Section) -> Figure | None:
    """Gold against judge labels."""
    return paths(section, "labels", "gold", "Gold against judge labels", "What each judge label buys.")


def learned(section: Section) -> Figure | None:
    """Learned reward against tokens."""
    return curves(
        section,
        M.BY_KEY["learned_reward"],
        "Learned reward",
        "Mean of the reward model that x parameterises.",
    )


def kl(section: Section) -> Figure | None:
    """KL against tokens."""
    return curves(section, M.BY_KEY["kl"], "KL to the reference", "Exact, over the vocabulary.")


def entropy(section: Section) -> Figure | None:
    """Entropy against tokens."""
    return curves(section, M.BY_KEY["entropy"], "Entropy", "Mean entropy of the next-token law.")


def upper(section: Section) -> Figure | None:
    """Upper objective against tokens."""
    return curves(
        section,
        M.BY_KEY["upper"],
        "Upper objective",
        "The upper level's loss f, as the judge's labels give it.",
    )


def rollout(section: Section) -> Figure | None:
    """A path of the first method's follower, at the end of its first run."""
    found = [m for m in section.methods if any(key.startswith("path_") for key in m.scene)]
    if not found:
        return None
    go, m = require("plotly.graph_objects", "report"), found[0]
    plot = rollouts.draw(go, {key.removeprefix("path_"): v[-1] for key, v in m.scene.items() if key.startswith("path_")})
    how = "first steps pale, last ones dark"
    if "path_curves" in m.scene:
        how = "pictures of the environment, first one left" if "path_images" in m.scene else "what it observes, step by step"
    caption = f"What the follower of {m.label} (run 1 of {m.count}) does at the end, by its best actions: {how}."
    return Figure("rollout", "A path of the follower", caption, plot)


# of either engine of JAX: a figure whose data is missing is left out
FINITE = (
    objective, outcome, gap, x_path, trade_off, rollout, gradient_error, lower_gap, gradient_norm, speed, sequences,
    profile, endings,
)  # fmt: skip
LLM = (
    gold,
    gold_against_reward,
    gold_against_kl,
    gold_against_length,
    gold_against_labels,
    learned,
    kl,
    entropy,
    upper,
    sequences,
)


# -- how they are drawn ---------------------------------------------------------------------------------------------


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
    floor = _floor(found, metric.key) if log_y else -np.inf
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
    plot.update_yaxes(type="log" if log_y else "linear", exponentformat="power", nticks=6)
    words = " ".join([caption, BAND.format(runs=_runs(found)), *below])
    return Figure(metric.key, title, words, plot, log_y=log_y)


def _floor(methods: list[MethodRuns], key: str) -> float:
    """Lowest value worth an axis: a tenth of the lowest that a sampling method reaches on average."""
    sampled = [m for m in methods if not m.model_based]
    if not sampled:
        return 1e-12
    lows = [np.nanmin(np.maximum(mean(m.trace[key], axis=0), 1e-12)) for m in sampled]
    return 0.1 * float(min(lows))


def paths(section: Section, x_key: str, y_key: str, title: str, caption: str) -> Figure | None:
    """One metric against another, in time, smoothed over a tenth of the run."""
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
        x, y = (smooth(mean(m.trace[k], axis=0)) for k in (x_key, y_key))
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
    caption = f"{caption} Mean over {_runs(found)}, smoothed over a tenth of the run; small dots: the single seeds' ends."
    return Figure(f"{y_key}-{x_key}", title, caption, plot)


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
    r, g, b = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({r},{g},{b},0.17)"


def numbers(values: np.ndarray, digits: int = 5) -> list[float | None]:
    """Numbers with five digits, NaN as gaps: a page stays small."""
    return [float(f"{v:.{digits}g}") if np.isfinite(v) else None for v in np.asarray(values, float)]


def _runs(methods: list[MethodRuns]) -> str:
    counts = sorted({m.count for m in methods})
    return (
        f"{counts[0]} run{'s' if counts[0] > 1 else ''}"
        if len(counts) == 1
        else f"{counts[0]} to {counts[-1]} runs"
    )
