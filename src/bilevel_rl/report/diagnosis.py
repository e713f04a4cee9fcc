"""The page of `bilevel-rl diagnose`: the theory's assumptions and rates as four figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import records
from bilevel_rl.errors import require
from bilevel_rl.report import page, style
from bilevel_rl.statistics import Interval, slope_text


def build(file: str | Path, out: str | Path) -> Path:
    """Write the page of a `diagnosis.json`.

    Raises:
        RunNotFound: the file is missing or torn.
        MissingDependency: without the extra `report`.
    """
    facts = records.read_json(Path(file))
    drawn = [figure for make in (dominance, bias_w, bias_tau, rate) if (figure := make(facts)) is not None]
    section = page.section_of("s0", f"diagnosis of {facts['problem']}", drawn, facts["provenance"])
    return page.render([section], out, title=f"Diagnosis of {facts['problem']}".replace("_", " "))


def dominance(facts: dict[str, Any]) -> style.Figure:
    """Squared gradient against suboptimality along exact policy-gradient ascent."""
    x, y = np.asarray(facts["suboptimality"]), np.asarray(facts["gradient_squared"])
    keep = (x > 1e-12) & (y > 0)
    return _line(
        "dominance", "Gradient dominance", "suboptimality, reward", "|∇_θ J_τ|²", x[keep], y[keep],
        "Along exact policy-gradient ascent from the uniform policy. The theory asks that the curve stays above a line "
        f"through the origin: the smallest ratio seen is {facts['dominance']:.3g}.",
    )  # fmt: skip


def bias_w(facts: dict[str, Any]) -> style.Figure:
    """Bias of the penalty hyper-gradient against w."""
    slope = _slope(facts["w_slope"])
    return _line(
        "bias_w", "Bias of the penalty", "w, reward / objective", "relative bias of the hyper-gradient", facts["w"],
        facts["w_bias"], f"Log-log slope {slope}; the theory says 1.", markers=True,
    )  # fmt: skip


def bias_tau(facts: dict[str, Any]) -> style.Figure:
    """Bias of the regularised hyper-objective against tau."""
    slope = _slope(facts["tau_slope"])
    return _line(
        "bias_tau", "Bias of the entropy", "τ, reward", "|Φ_τ(x) − Φ(x)|", facts["tau"], facts["tau_bias"],
        f"Log-log slope {slope}; reported, not predicted.", markers=True,
    )  # fmt: skip


def rate(facts: dict[str, Any]) -> style.Figure | None:
    """Mean squared hyper-gradient against samples, where a solver was run."""
    if facts.get("samples") is None:
        return None
    x, y = np.asarray(facts["samples"]), np.asarray(facts["gradient_norm_squared"])
    slope = _slope(facts["rate"])
    return _line(
        "rate", "Measured rate", "samples", "mean |∇Φ_τ(x)|²", x[1:], y[1:],
        f"Mean over {facts['settings']['runs']} runs of {facts['solver']}. Slope over the second half {slope}; "
        f"the theory proves {facts['theory_rate']:.3g} or faster.",
    )  # fmt: skip


def _slope(numbers: list[float]) -> str:
    return slope_text(Interval(*numbers))


def _line(key, title, x_name, y_name, x, y, caption, markers: bool = False) -> style.Figure:
    go = require("plotly.graph_objects", "report")
    plot = style.empty(go, x_name, y_name)
    x, y = np.asarray(x, float), np.maximum(np.asarray(y, float), 1e-16)
    plot.add_scatter(
        x=style.numbers(x), y=style.numbers(y), mode="lines+markers" if markers else "lines",
        line={"color": style.COLOURS[0], "width": 2.2}, marker={"size": 8},
        hovertemplate="%{y:.3g} at %{x:.3g}<extra></extra>",
    )  # fmt: skip
    plot.update_xaxes(type="log", exponentformat="power", nticks=6)
    plot.update_yaxes(type="log", exponentformat="power", nticks=6)
    return style.Figure(key, title, caption, plot, log_x=True, log_y=True)
