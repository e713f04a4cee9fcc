"""One setting of the paper's algorithm on sixteen goal placements that nobody arranged.

    python benchmarks/gridworld_population.py

Placements of 5 to 8 rows with random targets, starts, slips, discounts and widths: the goal placements of the reporting draw
of the population that the finite solvers' defaults are judged by (seed 16399, written before anything was run). Common
random numbers, `TimeScales.steady_critics` of each instance's discount, x held for 64,000 transitions, momentum .9,
averaging 4; the same constants everywhere. Success: a gap of at most 5 % of max(|best|, initial gap), graded at tau = .05 as
there; the best value comes from a grid polished by exact descent. Writes `results/gridworld_population.json`. Three minutes
of one core.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from gridworld_search import SEED, grade, run

from bilevel_rl import records
from bilevel_rl.finite import oracles
from bilevel_rl.finite.problems.goal_placement import GoalPlacement
from bilevel_rl.finite.solvers import PenaltyActorCritic
from bilevel_rl.loop import use_64_bit
from bilevel_rl.schedules import TimeScales

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "gridworld_population.json"
DRAW, INSTANCES, RUNS, TAU = 16399, 16, 5, 0.05
BUDGETS = (400_000, 800_000, 1_600_000)
DISCOUNTS, SLIPS, WIDTHS = (0.9, 0.95, 0.98), (0.0, 0.1, 0.3), (0.15, 0.25, 0.4)


def placement(rng: np.random.Generator) -> GoalPlacement:
    """A goal placement on an open grid of 5 to 8 rows."""
    rows = int(rng.integers(5, 9))
    return GoalPlacement(
        rows, rows, slip=float(rng.choice(SLIPS)), discount=float(rng.choice(DISCOUNTS)),
        width=float(rng.choice(WIDTHS)), target=tuple(rng.uniform(size=2)), x0=tuple(rng.uniform(size=2)),
    )  # fmt: skip


def main() -> None:
    """Every instance."""
    rng, rows = np.random.default_rng([DRAW, 0]), []
    for _ in range(INSTANCES):
        problem = jax.tree.map(jnp.asarray, placement(rng))
        gamma = float(problem.mdp.discount)
        solver = PenaltyActorCritic(
            scales=TimeScales.steady_critics(gamma), chains=32, common_noise=True, hold=1000.0, momentum=0.9, average=4.0
        )
        best = oracles.brute_force(problem, TAU, points=31).value
        x = run(problem, [solver], SEED, RUNS, BUDGETS)[0]
        soft, start = grade(problem, x, TAU), float(grade(problem, np.asarray(problem.x0)[None], TAU)[0])
        within = (soft <= best + 0.05 * max(abs(best), start - best)).sum(0)
        rows.append({
            "rows": problem.rows, "discount": gamma, "width": float(problem.width), "best": best, "start": start,
            "within": within.tolist(), "mean": soft.mean(0).round(4).tolist(),
        })  # fmt: skip
        print(rows[-1], flush=True)
        total = np.sum([row["within"] for row in rows], 0).tolist()
        records.write_json(RESULTS, {
            "budgets": list(BUDGETS), "runs": RUNS, "within": total, "of": RUNS * len(rows), "instances": rows,
            "hardware": records.hardware(),
            "provenance": records.provenance("python benchmarks/gridworld_population.py"),
        })  # fmt: skip


if __name__ == "__main__":
    main()
