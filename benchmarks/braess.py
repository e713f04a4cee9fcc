"""Braess's network: what coupled_penalty learns from transitions alone, and the picture of the docs.

    python benchmarks/braess.py

Five runs of 128,000 transitions at the default temperature, unless `results/braess.json` is there; the picture goes to
`docs/assets/braess.svg`. Its curves are two logits and the traffic that they make, solved by SciPy:
tests/finite/test_mean_field.py compares them with the equilibrium. A minute of one core.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import scipy.optimize

from bilevel_rl import records
from bilevel_rl.loop import use_64_bit

use_64_bit()
mpl.use("Agg")
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/braess.json"
PLACES = {"s": (0, 0.5), "a": (0.5, 1), "b": (0.5, 0), "t": (1, 0.5)}
ROADS = (("s", "a", "40 q"), ("s", "b", "45"), ("a", "t", "45"), ("b", "t", "40 q"), ("a", "b", "0"))


def traffic(toll: float, tau: float, discount: float = 0.5) -> np.ndarray:
    """Share of the drivers on each road, by a logit in s and one in a whose temperature is discounted."""

    def shares(z):
        by_a, bridge = 1 / (1 + np.exp(-z))
        return by_a, bridge, 2 / 3 * by_a, 2 / 3 * (1 - by_a + by_a * bridge)

    def off(z):
        _, _, first, second = shares(z)
        on, later, t = -(toll + second), -0.75, discount * tau
        after = t * np.logaddexp(on / t, later / t)
        return np.array([(-first + after + 0.75 + second) / tau, (on - later) / t]) - z

    by_a, bridge, *_ = shares(scipy.optimize.root(off, np.zeros(2), tol=1e-12).x)
    return np.array([by_a, 1 - by_a, by_a * (1 - bridge), 1 - by_a + by_a * bridge, by_a * bridge])


def minutes(q: np.ndarray) -> float:
    """Of a drive, on average."""
    return float(40 * q[0] ** 2 + 45 * q[1] + 45 * q[2] + 40 * q[3] ** 2)


def figure(ends: list[float], reached: list[float]) -> str:
    """Left the network with its traffic without a toll and at the best one, right minutes against the toll, as SVG."""
    mpl.rcParams["svg.hashsalt"] = "braess"
    drawing, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 1.3))
    without, best = traffic(0.0, 0.02), traffic(0.386, 0.02)
    for e, (start, end, takes) in enumerate(ROADS):
        (x0, y0), (x1, y1) = PLACES[start], PLACES[end]
        left.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "->", "color": "0.4", "shrinkA": 9, "shrinkB": 9})
        left.text((x0 + x1) / 2, (y0 + y1) / 2, f"{takes} min\n{without[e]:.2f} to {best[e]:.2f}", ha="center", va="center",
                  fontsize=8, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    for name, place in PLACES.items():
        left.plot(*place, "o", markersize=16, color="white", markeredgecolor="0.2")
        left.text(*place, name, ha="center", va="center")
    left.set_axis_off()
    left.set_title("minutes, and traffic q without and with the toll", fontsize=9)
    tolls = np.linspace(0, 0.8, 81)
    for tau in (0.02, 0.002):
        right.plot(tolls, [minutes(traffic(x, tau)) for x in tolls], label=f"temperature {tau} h")
    right.plot(ends, reached, "k.", alpha=0.6, label="ends of coupled_penalty's runs")
    right.axvline(0.375, color="0.6", linewidth=0.8)
    right.set_xlabel("toll on the shortcut (hours)")
    right.set_ylabel("mean minutes")
    right.legend(frameon=False, fontsize=8)
    out = io.StringIO()
    drawing.tight_layout()
    drawing.savefig(out, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def run() -> dict:
    """Five runs from x0, and the best toll by exact oracles."""
    from bilevel_rl.finite import oracles, solve
    from bilevel_rl.finite.problems import Braess
    from bilevel_rl.finite.solvers import CoupledPenalty

    it = Braess()
    best = oracles.brute_force(it, it.temperature())
    trace = solve(it, CoupledPenalty(), iterations=4000, record_every=500, runs=5, evaluate=False)
    hours = [float(oracles.hyper_objective(it, x, it.temperature())) for x in trace.x[:, -1]]
    return {
        "best_toll": float(best.x[0]), "best_hours": best.value,
        "hours_without": float(oracles.hyper_objective(it, it.x0, it.temperature())),
        "tolls": [[round(float(v), 3) for v in row] for row in trace.x[:, :, 0]],
        "hours": [round(v, 6) for v in hours], "samples": int(trace["samples"][0, -1]),
        "hardware": records.hardware(), "provenance": records.provenance("python benchmarks/braess.py"),
    }  # fmt: skip


def main() -> None:
    """Run what is missing, draw."""
    if not RESULTS.exists():
        records.write_json(RESULTS, run())
    found = json.loads(RESULTS.read_text())
    ends, reached = [row[-1] for row in found["tolls"]], [60 * h for h in found["hours"]]
    (ROOT / "docs/assets/braess.svg").write_text(figure(ends, reached))
    print(f"best toll {found['best_toll']:.4f}, {60 * found['best_hours']:.3f} minutes")
    print(f"runs end at tolls {ends}, minutes {[round(v, 2) for v in reached]}")


if __name__ == "__main__":
    main()
