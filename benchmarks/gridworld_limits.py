"""What keeps the single loop from the unregularised optimum of a goal distribution: temperature, penalty, noise or lag?

    python benchmarks/gridworld_limits.py

First exact oracles: where the optimum at a temperature, and that of a penalty w at it, would lead, judged by the
unregularised objective. Then runs: a setting that an earlier, smaller search had chosen (common random numbers, actors whose
steps fade as fast as those of x) and stood within 5 % of the *regularised* optimum only; each row changes what it names, 10
seeds to 3 million transitions. Beside the seeds' own grades stands that of the mean of their x, from which noise has gone,
and that of the optimum of the penalty at the end. Writes `results/gridworld_limits.json`. Two minutes of one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import dataclasses
from pathlib import Path
from typing import Any

import gridworld_search as search
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from bilevel_rl import records
from bilevel_rl.experiments.gridworld import problems
from bilevel_rl.finite import oracles
from bilevel_rl.finite.tuning import samples_per_iteration, with_options
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results"
TAUS, WEIGHTS = (0.2, 0.1, 0.05, 0.02, 0.01), (30.0, 9.0, 3.0, 1.0)
BUDGETS, RUNS = (335_982, 1_128_838, 2_976_351), 10
EARLIER = {
    "scales.zeta": (17.32, 0.5), "scales.alpha": (0.8828, 0.5), "scales.beta": (0.469, 0.0), "scales.w": (9.108, 0.0),
    "scales.tau": (0.0356, 0.0),
}  # fmt: skip
CHANGES: dict[str, dict[str, float]] = {
    "as it was": {},
    "tau .1": {"scales.tau.initial": 0.1},
    "tau .01": {"scales.tau.initial": 0.01},
    "w 3": {"scales.w.initial": 3.0},
    "a third of the steps of x": {"scales.zeta.initial": 17.32 / 3},
    "x with momentum .9": {"momentum": 0.9},
    "x with exponent .9": {"scales.zeta.initial": 300.0, "scales.zeta.power": 0.9},
    "actors constant at .05": {"scales.alpha.initial": 0.05, "scales.alpha.power": 0.0},
    "actors constant at .3": {"scales.alpha.initial": 0.3, "scales.alpha.power": 0.0},
    "actors constant at .3, x with momentum .9": {
        "scales.alpha.initial": 0.3, "scales.alpha.power": 0.0, "momentum": 0.9,
    },
    "actors constant at .3, x with momentum .9, tau .1": {
        "scales.alpha.initial": 0.3, "scales.alpha.power": 0.0, "momentum": 0.9, "scales.tau.initial": 0.1,
    },
}  # fmt: skip


def main() -> None:
    """Oracles, then runs."""
    problem = jax.tree.map(jnp.asarray, problems()["distribution"])
    best = records.read_json(RESULTS / "gridworld_optima.json")["optima"]["distribution"]["value"]
    exact = Exact(problem)
    places = []
    for tau in TAUS:
        x = exact.lowest(np.asarray(problem.x0, float), None, tau)
        places.append({"tau": tau, "w": None, "unregularised": exact.hard(x)})
        places += [{"tau": tau, "w": w, "unregularised": exact.hard(exact.lowest(x, w, tau))} for w in WEIGHTS]
    rows = runs(problem, exact, best)
    records.write_json(RESULTS / "gridworld_limits.json", {
        "best": best, "oracles": places, "budgets": list(BUDGETS), "runs": RUNS, "rows": rows,
        "hardware": records.hardware(), "provenance": records.provenance("python benchmarks/gridworld_limits.py"),
    })  # fmt: skip


def runs(problem: Any, exact: Exact, best: float) -> dict[str, Any]:
    """Every change, all at once."""
    base = dataclasses.replace(search.COMMON, chains=64, hold=156.0, average=4.0)
    base = with_options(base, {f"{n}.initial": v for n, (v, _) in EARLIER.items()})
    base = with_options(base, {f"{n}.power": p for n, (_, p) in EARLIER.items()})
    solvers = [with_options(base, change) for change in CHANGES.values()]
    x = search.run(problem, solvers, search.SEED, RUNS, BUDGETS)  # [changes, runs, budgets, d]
    hard, soft = search.grade(problem, x), search.grade(problem, x, search.TAU)
    k = BUDGETS[-1] // samples_per_iteration(problem, base)
    rows = {}
    for i, name in enumerate(CHANGES):
        middle = x[i, :, -1].mean(0)
        w, tau = (float(getattr(solvers[i].scales, n)(k)) for n in ("w", "tau"))
        rows[name] = {
            "within": (hard[i] <= 0.95 * best).sum(0).tolist(), "mean": hard[i].mean(0).round(4).tolist(),
            "regularised mean": soft[i].mean(0).round(4).tolist(), "of the mean x": exact.hard(middle),
            "of the penalised optimum": exact.hard(exact.lowest(middle, w, tau)),
            "spread of x": float(np.linalg.norm(x[i, :, -1] - middle, axis=1).mean()),
        }  # fmt: skip
        print(f"{name:52s} {rows[name]['within']} {rows[name]['mean']}", flush=True)
    return rows


class Exact:
    """The unregularised objective and the optimum of a penalty, by oracles."""

    def __init__(self, problem: Any):
        self.bounds = list(zip(*(np.asarray(b).tolist() for b in problem.box()), strict=True))
        self._hard = jax.jit(lambda x: oracles.hyper_objective(problem, x, 0))
        self._soft = jax.jit(jax.value_and_grad(lambda x, tau: oracles.hyper_objective(problem, x, tau)))

        def penalised(x, w, tau):
            pi, top = oracles.penalised_policy(problem, x, w, tau), oracles.lower_optimum(problem, x, tau).pi
            gap = oracles.lower_return(problem, x, top, tau) - oracles.lower_return(problem, x, pi, tau)
            return problem.objective.value(x, pi, problem) + gap / w

        self._penalised = jax.jit(penalised)
        self._slope = jax.jit(lambda x, w, tau: oracles.penalty_hyper_gradient(problem, x, w, tau))

    def hard(self, x: np.ndarray) -> float:
        """The unregularised objective."""
        return float(self._hard(jnp.asarray(x)))

    def lowest(self, x: np.ndarray, w: float | None, tau: float) -> np.ndarray:
        """Where quasi-Newton from x ends on the penalised hyper-objective; on the regularised one where w is None."""

        def value(x):
            x = jnp.asarray(x)
            if w is None:
                of = self._soft(x, tau)
            else:
                of = float(self._penalised(x, w, tau)), self._slope(x, w, tau)  # one program at a time: see Known edges
            return float(of[0]), np.asarray(of[1], float)

        return scipy.optimize.minimize(value, x, jac=True, method="L-BFGS-B", bounds=self.bounds).x


if __name__ == "__main__":
    main()
