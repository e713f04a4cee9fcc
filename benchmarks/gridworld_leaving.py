"""Why the paper's algorithm reaches the optimum, leaves it and comes back: one part of its schedule changed at a time.

    python benchmarks/gridworld_leaving.py

The position on the 10x10 grid, common random numbers, 32 chains, x held for 1,000 iterations, a setting made by hand
(zeta 2, alpha .2, beta 1, w 20, tau .05, the paper's exponents), 10 seeds. Each row changes what it names. Writes
`results/gridworld_leaving.json`. One minute of one core.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import gridworld_search as search
import jax
import jax.numpy as jnp

from bilevel_rl import records
from bilevel_rl.experiments.gridworld import problems
from bilevel_rl.finite.tuning import with_options
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results"
BUDGETS = (100_000, 200_000, 400_000, 800_000, 1_600_000, 3_200_000)
RUNS = 10
BY_HAND = {"zeta": 2.0, "alpha": 0.2, "beta": 1.0, "w": 20.0, "tau": 0.05}
CHANGES = {
    "as it is": {},
    "tau constant": {"scales.tau.power": 0.0},
    "w constant at 6": {"scales.w.initial": 6.0, "scales.w.power": 0.0},
    "half the steps of x": {"scales.zeta.initial": 1.0},
    "x averaged": {"average": 4.0},
    "actors five times as fast": {"scales.alpha.initial": 1.0},
    "critics constant at .3": {"scales.beta.initial": 0.3, "scales.beta.power": 0.0},
    "critics constant at .2, actors at .01": {
        "scales.beta.initial": 0.2, "scales.beta.power": 0.0, "scales.alpha.initial": 0.01, "scales.alpha.power": 0.0,
    },
}  # fmt: skip


def main() -> None:
    """Run every change, grade, write."""
    problem = jax.tree.map(jnp.asarray, problems()["position"])
    best = json.loads((RESULTS / "gridworld_optima.json").read_text())["optima"]["position"]
    base = dataclasses.replace(search.COMMON, chains=32, hold=1000.0)
    base = with_options(base, {f"scales.{name}.initial": value for name, value in BY_HAND.items()})
    solvers = [with_options(base, change) for change in CHANGES.values()]
    x = search.run(problem, solvers, search.SEED, RUNS, BUDGETS)  # [changes, runs, budgets, d]
    hard, soft = search.grade(problem, x), search.grade(problem, x, search.TAU)
    rows = {
        name: {
            "within": (hard[i] <= 0.95 * best["value"]).sum(0).tolist(), "mean": hard[i].mean(0).round(4).tolist(),
            "regularised mean": soft[i].mean(0).round(4).tolist(), "x": x[i].mean(0).round(3).tolist(),
            "spread of x": x[i].std(0, ddof=1).round(3).tolist(),
        }
        for i, name in enumerate(CHANGES)
    }  # fmt: skip
    records.write_json(RESULTS / "gridworld_leaving.json", {
        "budgets": list(BUDGETS), "runs": RUNS, "optimum": best["x"],
        "regularised optimum": best["regularised"]["x"], "rows": rows, "hardware": records.hardware(),
        "provenance": records.provenance("python benchmarks/gridworld_leaving.py"),
    })  # fmt: skip
    for name, row in rows.items():
        print(f"{name:40s} {row['within']} {row['mean']} {row['x']}")


if __name__ == "__main__":
    main()
