"""The README's table and figure of the paper's GridWorld experiment, from what the search's fresh seeds gave.

    python benchmarks/gridworld.py

Reads `results/gridworld_search.json`, `results/gridworld_optima.json` and, for the curves beyond 3 million transitions,
`results/gridworld_longer.json`; writes `results/gridworld.json` (counts, means with intervals, differences between methods
corrected for their number) and `docs/assets/gridworld.svg`. Three quarters of a minute of processor time, 1 core.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from gridworld_search import ALL, FADES, METHODS, TEMPERATURES, made

from bilevel_rl import records, statistics
from bilevel_rl.experiments.gridworld import problems
from bilevel_rl.finite import oracles
from bilevel_rl.finite.tuning import samples_per_iteration
from bilevel_rl.loop import use_64_bit

use_64_bit()

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks/results"
SUCCESS = 0.05
PARTS = ("position", "distribution")
OURS = (
    "as published", "as published, one chain", "as published, conditions kept", "+ common random numbers",
    "+ common random numbers, conditions kept", "+ hold", "+ momentum", "+ averaging", "+ hold, momentum, averaging",
    "+ steady followers", "+ steady followers and w", "+ its exponents", "constant entropy",
)  # fmt: skip
# two families of comparisons: the paper's baselines, and rivals that have our aids
FAMILIES = {
    "the paper's baselines": (
        "nested_penalty, as published", "partial_sgd", "finite_difference", "finite_difference, independent numbers",
    ),
    "rivals with our aids": (
        "nested_penalty", "nested_penalty, + its exponents", "finite_difference, + its exponents", "constant entropy",
    ),
}  # fmt: skip


def main() -> None:
    """Count, compare, draw."""
    cells = json.loads((RESULTS / "gridworld_search.json").read_text())
    optima = json.loads((RESULTS / "gridworld_optima.json").read_text())["optima"]
    parts: dict[str, Any] = {}
    for part in PARTS:
        rows = {}
        problem = jax.tree.map(jnp.asarray, problems()[part])
        for label in METHODS:
            cell = cells["cells"].get(f"{part} | {label}", {})
            if "final" in cell:
                rows[label] = row(cell["final"], optima[part])
                if ALL[label].solver.name == "penalty_actor_critic":
                    scales = made(ALL[label], problem, cell["final"]["setting"]).scales
                    rows[label]["broken conditions"] = scales.broken_constraints(float(problem.mdp.discount))
        if not rows:
            continue
        parts[part] = {"best": optima[part]["value"], "rows": rows, "differences": differences(cells["cells"], part, rows)}
    records.write_json(RESULTS / "gridworld.json", {
        "parts": parts, "subsidy": subsidy(cells["cells"], optima["subsidy"]),
        "hardware": cells["hardware"], "protocol": cells["protocol"],
        "provenance": records.provenance("python benchmarks/gridworld.py"),
    })  # fmt: skip
    longer = RESULTS / "gridworld_longer.json"
    (ROOT / "docs/assets/gridworld.svg").write_text(
        figure(parts, records.read_json(longer)["cells"] if longer.exists() else {})
    )


def tolerance(optimum: dict[str, Any]) -> float:
    """What a success may miss: 5 % of max(|best|, initial gap)."""
    return SUCCESS * max(abs(optimum["value"]), optimum["start"]["unregularised"] - optimum["value"])


def row(final: dict[str, Any], optimum: dict[str, Any]) -> dict[str, Any]:
    """Every record of a method: how many seeds succeed, mean and median of both grades, the mean's interval."""
    hard, soft = np.array(final["unregularised"]), np.array(final["regularised"])
    within = hard <= optimum["value"] + tolerance(optimum)
    best_soft, start_soft = optimum["regularised"]["value"], optimum["start"]["regularised"]
    within_soft = soft <= best_soft + SUCCESS * max(abs(best_soft), start_soft - best_soft)
    half = scipy.stats.t.ppf(0.975, len(hard) - 1) * hard.std(0, ddof=1) / np.sqrt(len(hard))
    return {
        "budgets": final["budgets"], "runs": len(hard), "within": within.sum(0).tolist(),
        "regularised within": within_soft.sum(0).tolist(),
        "success at the end": list(statistics.success_rate(within[:, -1])),
        "mean": hard.mean(0).round(4).tolist(), "half": half.round(4).tolist(),
        "median": np.median(hard, 0).round(4).tolist(),
        "regularised mean": soft.mean(0).round(4).tolist(), "setting": final["setting"],
    }  # fmt: skip


def differences(cells: dict[str, Any], part: str, rows: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean of each of the paper's rows less that of each rival, at every budget above .2 million that both have.

    Welch's interval, simultaneous over a family (Bonferroni): coverage at least 95 % for all of its comparisons together.
    """
    return [found for rivals in FAMILIES.values() for found in family_of(cells, part, rows, rivals)]


def family_of(cells: dict[str, Any], part: str, rows: dict[str, Any], rivals: tuple[str, ...]) -> list[dict[str, Any]]:
    """The comparisons of one family."""
    pairs = [(a, b) for a in OURS for b in rivals if a in rows and b in rows and a != b]
    family = []
    for a, b in pairs:
        shared = [i for i, budget in enumerate(rows[a]["budgets"]) if budget > 2e5 and budget in rows[b]["budgets"]]
        family += [(a, b, i) for i in shared]
    found = []
    for a, b, i in family:
        one, two = (np.array(cells[f"{part} | {label}"]["final"]["unregularised"])[:, i] for label in (a, b))
        low, high = scipy.stats.ttest_ind(one, two, equal_var=False).confidence_interval(1 - 0.05 / len(family))
        found.append({
            "of": a, "less": b, "budget": rows[a]["budgets"][i], "difference": round(float(one.mean() - two.mean()), 4),
            "low": round(float(low), 4), "high": round(float(high), 4), "family": len(family),
        })  # fmt: skip
    return found


# -- constant against fading temperatures, on the subsidy ------------------------------------------------------------


def subsidy(cells: dict[str, Any], optimum: dict[str, Any]) -> dict[str, Any]:
    """Where each row ends, what tau and w have become, and where its penalty and its entropy alone would lead."""
    problem = jax.tree.map(jnp.asarray, problems()["subsidy"])
    rows: dict[str, Any] = {}
    for tau in TEMPERATURES:
        for word in FADES:
            label = f"{word} from {tau:g}"
            final = cells.get(f"subsidy | {label}", {}).get("final")
            if final is None:
                continue
            solver = made(ALL[label], problem, final["setting"])
            last = final["budgets"][-1] // samples_per_iteration(problem, solver)
            w, t = float(solver.scales.w(last)), float(solver.scales.tau(last))
            x = np.array(final["x"])[:, 0]
            rows[label] = row(final, optimum) | {
                "w at the end": w, "tau at the end": t, "x": float(x.mean()), "spread of x": float(x.std(ddof=1)),
                "penalised x": lowest(problem, w, t), "regularised x": lowest(problem, None, t),
            }  # fmt: skip
    pairs = [(f"{word} from {tau:g}", f"constant from {tau:g}") for tau in TEMPERATURES for word in ("fading", "steeper")]
    pairs = [(a, b) for a, b in pairs if a in rows and b in rows]
    found = []
    for a, b in pairs:
        one, two = (np.array(cells[f"subsidy | {label}"]["final"]["unregularised"])[:, -1] for label in (a, b))
        low, high = scipy.stats.ttest_ind(one, two, equal_var=False).confidence_interval(1 - 0.05 / len(pairs))
        difference = float(one.mean() - two.mean())
        found.append({"of": a, "less": b, "difference": difference, "low": float(low), "high": float(high)})
    return {"best": optimum["value"], "x": optimum["x"][0], "rows": rows, "differences": found}


def lowest(problem: Any, w: float | None, tau: float) -> float:
    """The x that minimises the penalised hyper-objective, or the regularised one (w None), on a fine grid of x."""

    @jax.jit
    def values(xs):
        def one(x):
            if w is None:
                return oracles.hyper_objective(problem, x, tau)
            pi, best = oracles.penalised_policy(problem, x, w, tau), oracles.lower_optimum(problem, x, tau).pi
            gap = oracles.lower_return(problem, x, best, tau) - oracles.lower_return(problem, x, pi, tau)
            return problem.objective.value(x, pi, problem) + gap / w

        return jax.lax.map(one, xs)

    xs = jnp.linspace(0.9, 2.5, 321)[:, None]
    return float(xs[int(jnp.argmin(values(xs))), 0])


# -- the figure: median of the unregularised objective against transitions, one panel a parametrisation ----------------

COLOURS = {
    "as published": "#0a84c6", "+ common random numbers": "#e08a00", "+ steady followers and w": "#d4582a",
    "nested_penalty, as published": "#7d8590", "nested_penalty": "#b36fa8", "partial_sgd": "#a59100",
    "finite_difference": "#4fb3d9", "coupled_penalty": "#0a9e73",
}  # fmt: skip


def figure(parts: dict[str, Any], longer: dict[str, Any]) -> str:
    """An SVG that reads on white and on near-black; `longer` goes on, with fewer seeds, where the rows end."""
    width, height, left, top, gap = 400, 300, 56, 34, 70
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {2 * width + gap + left + 40} {top + height + 130}" '
        'font-family="system-ui, sans-serif" font-size="12">'
        "<style>text{fill:#59616b}@media(prefers-color-scheme:dark){text{fill:#a9b1bb}}</style>"
    ]
    for column, (part, facts) in enumerate(parts.items()):
        x0, low = left + column * (width + gap), facts["best"]
        shown = [r for label, r in facts["rows"].items() if label in COLOURS]
        further = {label: longer[f"{part} | {label}"] for label in COLOURS if f"{part} | {label}" in longer}
        last = max((r["budgets"][-1] for r in (*shown, *further.values())), default=3e6)
        floor, ceiling = low - 0.02, 0.0

        def px(budget, x0=x0, last=last):
            return x0 + width * np.log10(budget / 1e5) / np.log10(last / 1e5)

        def py(value, floor=floor, ceiling=ceiling):
            return top + height * (ceiling - min(value, ceiling)) / (ceiling - floor)

        out.append(f'<text x="{x0}" y="{top - 14}" font-size="14">goal as a {part}</text>')
        out.append(f'<path d="M{x0},{top}V{top + height}H{x0 + width}" fill="none" stroke="#7d8590"/>')
        for value in np.arange(-0.7, 0.01, 0.1):
            out.append(f'<text x="{x0 - 6}" y="{py(value) + 4:.1f}" text-anchor="end">{value:.1f}</text>')
        ticks = ((1e5, "100,000"), (3e5, "300,000"), (1e6, "1 million"), (3e6, "3 million"), (1e7, "10 million"))
        for budget, word in ticks:
            if budget <= 1.05 * last:
                out.append(f'<text x="{px(budget):.1f}" y="{top + height + 16}" text-anchor="middle">{word}</text>')
        for value, dash in ((low, ""), (low + SUCCESS * abs(low), ' stroke-dasharray="2 4"')):
            out.append(f'<path d="M{x0},{py(value):.1f}h{width}" stroke="#7d8590" stroke-width=".8"{dash}/>')
        for label, colour in COLOURS.items():
            if label in facts["rows"]:
                r = facts["rows"][label]
                points = " ".join(f"{px(b):.1f},{py(m):.1f}" for b, m in zip(r["budgets"], r["mean"], strict=True))
                dash = ' stroke-dasharray="6 3"' if "published" in label else ""
                out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>')
                if label in further:
                    late = [(b, m) for b, m in zip(further[label]["budgets"], further[label]["mean"], strict=True)
                            if b >= r["budgets"][-1]]  # fmt: skip
                    points = " ".join(f"{px(b):.1f},{py(m):.1f}" for b, m in late)
                    out.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1"{dash}/>')
    for i, (label, colour) in enumerate(COLOURS.items()):
        x, y = left + (i % 3) * 280, top + height + 50 + 22 * (i // 3)
        dash = ' stroke-dasharray="6 3"' if "published" in label else ""
        out.append(f'<path d="M{x},{y - 4}h26" stroke="{colour}" stroke-width="2"{dash}/>')
        out.append(f'<text x="{x + 34}" y="{y}">{label}</text>')
    out.append(f'<text x="{left}" y="{top + height + 122}">transitions, all chains counted; unregularised objective, mean '
               "of 30 seeds (beyond 3 million, thin: 10); grey: best known, dotted: 5 % above</text></svg>")  # fmt: skip
    return "\n".join(out) + "\n"


if __name__ == "__main__":
    main()
