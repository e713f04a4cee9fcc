"""Whether a row of the suite is lost by its gradients or by its starts: exact descent from the very starts of the row.

    python benchmarks/basins.py [--only "one-goal four rooms, warm" ...] [--steps short long shipped raced]

For each task whose starts are drawn at random and decide where a run ends (four rooms), exact descent goes 400 steps along
the oracle's hyper-gradient from the 24 starts of the suite's runs with one start. Steps are `size` times the gradient and no
longer than `longest`; two choices of both, since where descent ends depends on them too. Where it ends above what a method
reached from the same starts, no better estimate of the gradient would have helped. Beside it `coupled_penalty` with as many
transitions as the table's runs, from the first eight of these starts: as shipped, its steps not chosen for the task; and
*raced*, with the table's setting and eight starts in one run, of which the table's is the first. A second call makes what is
missing; one cell takes ten seconds to two minutes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl import records
from bilevel_rl.bench import collect, methods, tasks
from bilevel_rl.finite import oracles, solve, tuning
from bilevel_rl.finite.solvers import CoupledPenalty
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "basins.json"
SUITE = Path(__file__).parent / "results" / "suite.json"
SEED, RUNS, STEPS = 11, 24, 400  # seed and runs of `bilevel-rl bench suite --seed 11`
SAMPLED_RUNS = 8  # ours: a third of the table's, as its searches have
SIZES = {"short": (10.0, 0.2), "long": (100.0, 0.5)}  # ours: the gradient is of the order .01 to .1, x of 1 to 5
WAYS = (*SIZES, "shipped", "raced")


def ends(task: tasks.Task, steps: str) -> list[float | None]:
    """The hyper-objective where each run ends; None for one that stopped."""
    final = descended(task, *SIZES[steps]) if steps in SIZES else sampled(task, raced=steps == "raced")
    return [float(f"{v:.6g}") if np.isfinite(v) else None for v in final]


def descended(task: tasks.Task, size: float, longest: float) -> np.ndarray:
    """Exact descent from each start of the row."""
    problem = task.make()
    tau = problem.temperature()

    @jax.jit
    def descend(xs):
        def one(x):
            def move(x, _):
                g = oracles.hyper_gradient(problem, x, tau)
                return problem.project(x - g * jnp.minimum(size, longest / jnp.linalg.norm(g))), None

            return oracles.hyper_objective(problem, jax.lax.scan(move, x, None, length=STEPS)[0], tau)

        return jax.lax.map(one, xs)

    return np.asarray(descend(task.starts(problem, RUNS, SEED)))


def sampled(task: tasks.Task, raced: bool) -> np.ndarray:
    """`coupled_penalty` as `run` has it, or with the table's setting and eight starts."""
    problem = task.make()
    solver = tuning.with_options(CoupledPenalty(), {"scales.tau.initial": problem.temperature()})
    iterations = tuning.iterations_for(problem, solver, task.samples, task.iterations)
    if raced:
        (method,) = methods.named(("coupled_penalty",), quick=False)
        chosen = records.read_json(SUITE)["cells"][f"{task.name} | coupled_penalty"]["tuning"]["chosen"]
        solver = method.settle(method.make(task, problem), chosen, task, iterations)
        solver = tuning.with_options(solver, {"starts": 8})
    x0 = task.starts(problem, SAMPLED_RUNS, SEED)
    trace = solve(problem, solver, iterations=iterations, record_every=iterations, runs=SAMPLED_RUNS, seed=SEED, x0=x0)
    return np.where(trace.status == 0, trace["objective"][:, -1], np.inf)


def so_far() -> dict:
    """What earlier calls have made."""
    return records.read_json(RESULTS) if RESULTS.exists() else {"cells": {}}


def main() -> None:
    """Fill the missing cells, print each."""
    which = {task.name: task for task in tasks.ALL if task.basins and task.start == "normal"}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=list(which), choices=list(which))
    parser.add_argument("--steps", nargs="*", default=list(WAYS), choices=WAYS)
    options = parser.parse_args()
    for name in options.only:
        for steps in options.steps:
            key = f"{name} | {steps}"
            if key in so_far()["cells"]:
                continue
            began = time.process_time()
            found = ends(which[name], steps)
            results = so_far()  # another call may have written meanwhile
            results["cells"][key] = {"final": found, "cpu_seconds": round(time.process_time() - began, 1)}
            results |= {"hardware": records.hardware(), "provenance": records.provenance("python benchmarks/basins.py")}
            collect.write(RESULTS, results)
            print(key, found, flush=True)


if __name__ == "__main__":
    main()
