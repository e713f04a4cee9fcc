"""Constant against fading temperatures with everything else the same, on the subsidy, where regularisation costs something.

    python benchmarks/gridworld_temperature.py            30 seeds to 1.2 million transitions, three temperatures
    python benchmarks/gridworld_temperature.py --longer   10 of them to 10 million, constant and fading as in the paper

The constants that the first search chose for the row that fades from .5 (`gridworld_search.py`: of the rows on the subsidy
the best on its tuning seeds then), from each starting temperature: constant, fading as in the paper (exponent 1/20) and
faster (1/4, ours), 30 fresh seeds, the same random numbers. The search's own comparison, in which each row has constants of
its own, says as much about those constants as about temperatures. Beside each row what exact oracles say: the x that its
temperature and its penalty alone would lead to. Writes `results/gridworld_temperature.json`, with `--longer`
`..._longer.json`. Two minutes of one core, four with `--longer`.
"""

from __future__ import annotations

import argparse
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
LONGER = (*BUDGETS, 2_500_000, 5_000_000, 10_000_000)
TAKEN = "fading from 0.5"


def main() -> None:
    """Three temperatures and schedules, or fewer for longer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--longer", action="store_true", help="10 seeds to 10 million transitions, constant and fading")
    if parser.parse_args().longer:
        compare("gridworld_temperature_longer", LONGER, 10, TEMPERATURES, ("constant", "fading"), " --longer")
    else:
        compare("gridworld_temperature", BUDGETS, RUNS, TEMPERATURES, tuple(FADES))


def compare(
    name: str, budgets: tuple[int, ...], runs: int, temperatures: tuple[float, ...], words: tuple[str, ...], how: str = ""
) -> None:
    """Run the rows, grade them, write the file `name`."""
    problem = jax.tree.map(jnp.asarray, problems()["subsidy"])
    optimum = records.read_json(RESULTS / "gridworld_optima.json")["optima"]["subsidy"]
    cells, rows, hard = stored(), {}, {}
    for tau in temperatures:
        chosen = cells[f"subsidy | {TAKEN}"]["searches"][0]["chosen"]
        base = with_options(made(ALL[TAKEN], problem, chosen), {"scales.tau.initial": tau})
        solvers = [with_options(base, {"scales.tau.power": FADES[word]}) for word in words]
        x = run(problem, solvers, SEED, runs, budgets)  # [schedules, runs, budgets, 1]
        last = budgets[-1] // samples_per_iteration(problem, base)
        for i, word in enumerate(words):
            values, end = grade(problem, x[i]), float(solvers[i].scales.tau(last))
            w = float(solvers[i].scales.w(last))
            row_name = f"{word} from {tau:g}"
            hard[row_name] = values[:, -1]
            final = {"budgets": list(budgets), "setting": chosen, "unregularised": values.tolist(),
                     "regularised": grade(problem, x[i], TAU).tolist()}  # fmt: skip
            rows[row_name] = row(final, optimum) | {
                "w at the end": w, "tau at the end": end, "x": float(x[i, :, -1].mean()),
                "spread of x": float(x[i, :, -1].std(ddof=1)), "penalised x": lowest(problem, w, end),
                "regularised x": lowest(problem, None, end),
            }  # fmt: skip
            print(row_name, *(rows[row_name][key] for key in ("mean", "x", "penalised x")), flush=True)
    pairs = [(f"{word} from {t:g}", f"constant from {t:g}") for t in temperatures for word in words if word != "constant"]
    found = []
    for a, b in pairs:  # the same seeds and random numbers: paired
        low, high = scipy.stats.ttest_rel(hard[a], hard[b]).confidence_interval(1 - 0.05 / len(pairs))
        difference = float(np.mean(hard[a] - hard[b]))
        found.append({"of": a, "less": b, "difference": difference, "low": float(low), "high": float(high)})
    records.write_json(RESULTS / f"{name}.json", {
        "best": optimum["value"], "x": optimum["x"][0], "rows": rows, "differences": found,
        "hardware": records.hardware(), "provenance": records.provenance(f"python benchmarks/gridworld_temperature.py{how}"),
    })  # fmt: skip


if __name__ == "__main__":
    main()
