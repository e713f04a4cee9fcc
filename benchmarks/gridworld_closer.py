"""One setting of the paper's algorithm with our aids for both parametrisations of the goal.

    python benchmarks/gridworld_closer.py [--until 3e6]

Not a row of the equal comparison (`gridworld_search.py`): this row alone had a second search, on seeds of its own, near
what the first had shown to matter (critics, actors and w at constant steps, momentum .9, averaging 4): 140 random settings,
then 24 on a grid. What is taken is the same for both but for zeta, which carries the unit of x: positions in [0, 1],
logits. 30 fresh seeds, 20 fixed log-spaced budgets, both grades. Writes `results/gridworld_closer.json`. Three minutes of
one core to 10 million transitions.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import gridworld_search as search
import jax
import jax.numpy as jnp
from gridworld import row

from bilevel_rl import records
from bilevel_rl.experiments.gridworld import problems
from bilevel_rl.finite.tuning import with_options
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results"
SHARED = {
    "scales.zeta.power": 0.5, "scales.alpha.initial": 0.1, "scales.beta.initial": 0.45, "scales.w.initial": 22.0,
    "scales.tau.initial": 0.12, "scales.tau.power": 1 / 20, "momentum": 0.9, "average": 4.0, "hold": 160.0,
}  # fmt: skip
ZETA = {"position": 0.5, "distribution": 8.0}


def main() -> None:
    """Both parametrisations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", type=float, default=1e7, help="transitions of the runs")
    options = parser.parse_args()
    optima, parts = records.read_json(RESULTS / "gridworld_optima.json")["optima"], {}
    budgets = [int(b) for b in search.BUDGETS if b <= options.until]
    for part, zeta in ZETA.items():
        problem = jax.tree.map(jnp.asarray, problems()[part])
        setting = SHARED | {"scales.zeta.initial": zeta}
        solver = with_options(dataclasses.replace(search.STEADY_W, chains=32), setting)
        x = search.run(problem, [solver], search.SEED, search.RUNS, budgets)[0]
        parts[part] = row({
            "budgets": budgets, "unregularised": search.grade(problem, x).tolist(),
            "regularised": search.grade(problem, x, search.TAU).tolist(), "setting": setting | {"chains": 32},
        }, optima[part]) | {"broken conditions": solver.scales.broken_constraints(float(problem.mdp.discount))}  # fmt: skip
        print(part, parts[part]["within"], parts[part]["mean"], flush=True)
        records.write_json(RESULTS / "gridworld_closer.json", {
            "parts": parts, "hardware": records.hardware(),
            "provenance": records.provenance("python benchmarks/gridworld_closer.py"),
        })  # fmt: skip


if __name__ == "__main__":
    main()
