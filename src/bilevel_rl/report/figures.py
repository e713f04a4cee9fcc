"""The figures of a section: which there are and what their captions say."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bilevel_rl import metrics as M
from bilevel_rl.errors import require
from bilevel_rl.report import rollouts
from bilevel_rl.report.answers import endings, x_path
from bilevel_rl.report.collect import Section
from bilevel_rl.report.curves import curves, floor_of, paths
from bilevel_rl.report.style import COLOURS, Figure, beside, colours, counted, empty, logarithmic, numbers
from bilevel_rl.statistics import performance_profile


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
    learnt = paths(
        section, "follower_outcome", "outcome", "Leader against follower",
        "Across: what x pays the follower a step; upwards: what the leader gets. Each line is a method in time, from the "
        "first steps, the ring, to the dot.", first=1,
    )  # fmt: skip
    return learnt or paths(
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
    logarithmic(plot, np.array([v for t in plot.data for v in t.y], float))
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
    floor = floor_of(found, "gap")
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
        f"Every run counts: the fraction of {counted(found)} whose final gap is at most the value on the axis."
    )
    return Figure("profile", "Performance profile", caption, plot, log_x=True)


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
