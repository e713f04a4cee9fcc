"""Braess's network: what coupled_penalty learns from transitions alone, and the picture of the docs.

    python benchmarks/braess.py

Ten runs of 128,000 transitions at the default temperature; results go to `results/braess.json`, the picture to
`docs/assets/braess.svg`. Two minutes of one core.
"""

from __future__ import annotations

import io
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np

from bilevel_rl import records
from bilevel_rl.finite import oracles, solve
from bilevel_rl.finite.problems import Braess
from bilevel_rl.finite.solvers import CoupledPenalty
from bilevel_rl.loop import use_64_bit

use_64_bit()
mpl.use("Agg")
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks/results/braess.json"
PLACES = {"s": (0, 0.5), "a": (0.5, 1), "b": (0.5, 0), "t": (1, 0.5)}


def figure(it: Braess, tolls, curves: dict, ends, minutes) -> str:
    """Left the network with its traffic without a toll and at the best one, right minutes against the toll, as SVG."""
    mpl.rcParams["svg.hashsalt"] = "braess"
    drawing, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1, 1.3))
    flows = [np.asarray(it.traffic(it.equilibrium(jnp.array([x]), 0.02).mu)) for x in (0.0, 0.386)]
    for e, (start, end, free, slope) in enumerate(it.roads):
        (x0, y0), (x1, y1) = PLACES[start], PLACES[end]
        left.annotate("", (x1, y1), (x0, y0), arrowprops={"arrowstyle": "->", "color": "0.4", "shrinkA": 9, "shrinkB": 9})
        name = f"{60 * slope:.0f} q" if slope else f"{60 * free:.0f}"
        text = f"{name} min\n{flows[0][e]:.2f} to {flows[1][e]:.2f}"
        left.text((x0 + x1) / 2, (y0 + y1) / 2, text, ha="center", va="center", fontsize=8,
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})  # fmt: skip
    for name, place in PLACES.items():
        left.plot(*place, "o", markersize=16, color="white", markeredgecolor="0.2")
        left.text(*place, name, ha="center", va="center")
    left.set_axis_off()
    left.set_title("minutes, and traffic without and with the toll", fontsize=9)
    for tau, curve in curves.items():
        right.plot(tolls, 60 * np.asarray(curve), label=f"temperature {tau} h")
    right.plot(ends, minutes, "k.", alpha=0.6, label="ends of coupled_penalty's runs")
    right.axvline(0.375, color="0.6", linewidth=0.8)
    right.set_xlabel("toll on the shortcut (hours)")
    right.set_ylabel("mean minutes")
    right.legend(frameon=False, fontsize=8)
    out = io.StringIO()
    drawing.tight_layout()
    drawing.savefig(out, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"


def main() -> None:
    """Run, write the numbers, draw."""
    it, tolls = Braess(), np.linspace(0, 0.8, 33)
    curves = {}
    for tau in (0.02, 0.002):
        value = jax.jit(lambda x, tau=tau: oracles.hyper_objective(it, jnp.array([x]), tau))
        curves[tau] = [float(value(x)) for x in tolls]
        if tau == it.temperature():
            at = value
    best = oracles.brute_force(it, it.temperature())
    trace = solve(it, CoupledPenalty(), iterations=4000, record_every=1000, runs=10, evaluate=False)
    ends = trace.x[:, -1, 0]
    hours = [float(at(x)) for x in ends]
    found = {
        "best_toll": float(best.x[0]), "best_hours": best.value, "hours_without": curves[0.02][0],
        "tolls": [[round(float(v), 4) for v in row] for row in trace.x[:, 1:, 0]],
        "hours": [round(v, 6) for v in hours], "samples": int(trace["samples"][0, -1]),
        "hardware": records.hardware(), "provenance": records.provenance("python benchmarks/braess.py"),
    }  # fmt: skip
    records.write_json(RESULTS, found)
    (ROOT / "docs/assets/braess.svg").write_text(figure(it, tolls, curves, ends, [60 * v for v in hours]))
    print(f"best toll {found['best_toll']:.4f}, {60 * best.value:.3f} minutes; runs end at {sorted(ends.round(3).tolist())}")
    print(f"minutes {sorted(round(60 * v, 2) for v in hours)}")


if __name__ == "__main__":
    main()
