"""Constant against fading temperatures with everything else the same, on the subsidy, where regularisation costs something.

    python benchmarks/gridworld_temperature.py

The constants that the search chose for the row that fades from .5 (`gridworld_search.py`: of the rows on the subsidy the
best on its tuning seeds), from each starting temperature: constant, fading as in the paper (exponent 1/20) and faster (1/4,
ours), 30 fresh seeds, the same random numbers. The search's own comparison, in which each row has constants of its own, says
as much about those constants as about temperatures. Beside each row what exact oracles say: the x that its temperature and
its penalty alone would lead to. Writes `results/gridworld_temperature.json`. Two minutes of one core.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
from gridworld import lowest, row
from gridworld_search import ALL, FADES, RUNS, SEED, TAU, TEMPERATURES, grade, made, run, stored

from bilevel_rl import records
from bilevel_rl.experiments.gridworld import problems
from bilevel_rl.finite.tuning import samples_per_iteration, with_options
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results"
BUDGETS = (100_000, 200_000, 400_000, 800_000, 1_200_000)
TAKEN = "fading from 0.5"


def main() -> None:
    """Three temperatures, three schedules."""
    problem = jax.tree.map(jnp.asarray, problems()["subsidy"])
    optimum = records.read_json(RESULTS / "gridworld_optima.json")["optima"]["subsidy"]
    cells, rows, hard = stored(), {}, {}
    for tau in TEMPERATURES:
        chosen = cells[f"subsidy | {TAKEN}"]["searches"][0]["chosen"]
        base = with_options(made(ALL[TAKEN], problem, chosen), {"scales.tau.initial": tau})
        solvers = [with_options(base, {"scales.tau.power": power}) for power in FADES.values()]
        x = run(problem, solvers, SEED, RUNS, BUDGETS)  # [schedules, runs, budgets, 1]
        last = BUDGETS[-1] // samples_per_iteration(problem, base)
        for i, word in enumerate(FADES):
            values, end = grade(problem, x[i]), float(solvers[i].scales.tau(last))
            w = float(solvers[i].scales.w(last))
            name = f"{word} from {tau:g}"
            hard[name] = values[:, -1]
            final = {"budgets": list(BUDGETS), "setting": chosen, "unregularised": values.tolist(),
                     "regularised": grade(problem, x[i], TAU).tolist()}  # fmt: skip
            rows[name] = row(final, optimum) | {
                "w at the end": w, "tau at the end": end, "x": float(x[i, :, -1].mean()),
                "spread of x": float(x[i, :, -1].std(ddof=1)), "penalised x": lowest(problem, w, end),
                "regularised x": lowest(problem, None, end),
            }  # fmt: skip
            print(name, rows[name]["mean"], rows[name]["x"], rows[name]["penalised x"], flush=True)
    pairs = [(f"{word} from {t:g}", f"constant from {t:g}") for t in TEMPERATURES for word in ("fading", "steeper")]
    found = []
    for a, b in pairs:  # the same seeds and random numbers: paired
        low, high = scipy.stats.ttest_rel(hard[a], hard[b]).confidence_interval(1 - 0.05 / len(pairs))
        difference = float(np.mean(hard[a] - hard[b]))
        found.append({"of": a, "less": b, "difference": difference, "low": float(low), "high": float(high)})
    records.write_json(RESULTS / "gridworld_temperature.json", {
        "best": optimum["value"], "x": optimum["x"][0], "rows": rows, "differences": found,
        "hardware": records.hardware(), "provenance": records.provenance("python benchmarks/gridworld_temperature.py"),
    })  # fmt: skip


if __name__ == "__main__":
    main()
