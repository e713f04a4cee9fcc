"""The optima that the paper's GridWorld experiment is graded by, found before any seed is run, by exact oracles alone.

    python benchmarks/gridworld_optimum.py

The graded objective is the unregularised one, f(x, pi*(x)) with pi*(x) the limit of the soft optimum as tau falls. As a
function of a position it jumps wherever the best walk changes, so no gradient finds its minimum: a grid does, refined
around its best cells until the best value settles; what the last refinement still changed is the resolution error. For a
distribution over cells (100 dimensions) no grid can: quasi-Newton on the regularised objective from several starts, with
falling tau, every iterate graded without regularisation. That value is the best known one, not the optimum. The
regularised optima (tau = .05) stand beside both. Writes `results/gridworld_optima.json`.
"""

from __future__ import annotations

import os

from bilevel_rl.loop import use_64_bit

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize

from bilevel_rl import records
from bilevel_rl.experiments.gridworld import TAU, problems
from bilevel_rl.finite import oracles

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "gridworld_optima.json"
TAUS = (0.05, 0.02, 0.01, 0.005, 0.002)  # of the continuation
CELLS, SHRINK, REFINEMENTS = 8, 5, 5


@jax.jit
def phi(problem, x):
    """Unregularised."""
    return oracles.hyper_objective(problem, x, 0)


@jax.jit
def soft(problem, x, tau):
    """Regularised, and its gradient."""
    return jax.value_and_grad(lambda x: oracles.hyper_objective(problem, x, tau))(x)


def refined_grid(value, low: np.ndarray, high: np.ndarray, points: int) -> dict:
    """The least value over a box: a grid, then finer grids around its best cells, again and again.

    Args:
        value: [n, d] -> [n].

    Returns:
        x, value, the best value after each refinement, and the spacing of the last grid.
    """
    spacing = (high - low) / (points - 1)
    seen_x = grid(low, high, points)
    seen = value(seen_x)
    history = [float(seen.min())]
    for _ in range(REFINEMENTS):
        best = np.argsort(seen)[:CELLS]
        fine = [grid(np.maximum(low, x - spacing), np.minimum(high, x + spacing), 2 * SHRINK + 1) for x in seen_x[best]]
        seen_x, kept = np.unique(np.concatenate([seen_x[best], *fine]), axis=0), len(best)
        seen = value(seen_x)
        spacing = spacing / SHRINK
        history.append(float(seen.min()))
        assert kept
    i = int(np.argmin(seen))
    return {"x": seen_x[i].tolist(), "value": float(seen[i]), "history": history, "spacing": spacing.tolist(),
            "resolution_error": history[-2] - history[-1]}  # fmt: skip


def grid(low: np.ndarray, high: np.ndarray, points: int) -> np.ndarray:
    """[points^d, d]."""
    axes = [np.linspace(a, b, points) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(axes))


def best_known(problem, starts: list[np.ndarray]) -> dict:
    """The least unregularised value seen along quasi-Newton descents of the regularised objective with falling tau."""
    low, high = (np.asarray(b) for b in problem.box())
    best = {"value": np.inf, "x": None}
    regularised = {"value": np.inf, "x": None}
    for start in starts:
        x = np.clip(start, low, high)
        for tau in TAUS:
            path = []

            def fun(x, tau=tau, path=path):
                value, slope = soft(problem, jnp.asarray(x), jnp.asarray(tau))
                path.append(np.array(x))
                return float(value), np.asarray(slope, float)

            x = scipy.optimize.minimize(
                fun, x, jac=True, method="L-BFGS-B", bounds=list(zip(low, high, strict=True)), options={"maxiter": 100}
            ).x
            if tau == TAU:
                value = float(soft(problem, jnp.asarray(x), jnp.asarray(TAU))[0])
                if value < regularised["value"]:
                    regularised = {"value": value, "x": x.round(6).tolist()}
            for y in [*path[len(path) // 2::3], x]:
                value = float(phi(problem, jnp.asarray(y)))
                if value < best["value"]:
                    best = {"value": value, "x": np.round(y, 6).tolist(), "found_at_tau": tau}
    return best | {"regularised": regularised}


def main() -> None:
    """Find all, write them."""
    found = {}
    for name, problem in problems().items():
        began = time.process_time()
        problem = jax.tree.map(jnp.asarray, problem)
        d = problem.x0.shape[0]
        at = {"unregularised": float(phi(problem, problem.x0)), "regularised": float(soft(problem, problem.x0, TAU)[0])}
        if d <= 2:
            every = jax.jit(lambda x, problem=problem: jax.lax.map(lambda x: phi(problem, x), x))
            low, high = (np.asarray(b) for b in problem.box())
            result = refined_grid(lambda x, every=every: padded(every, x), low, high, 61 if d == 2 else 401)
            plain = oracles.brute_force(problem, TAU, points=41)
            result["regularised"] = {"value": plain.value, "x": plain.x.tolist()}
        else:
            p, middles = np.asarray(problem.position), [(a, b) for a in (0.5, 0.65, 0.8, 0.95) for b in (0.3, 0.5, 0.7)]
            starts = [np.asarray(problem.x0)]
            starts += [-((p - c) ** 2).sum(-1) / (2 * s**2) for c in middles for s in (0.15, 0.3)]
            result = best_known(problem, starts)
        found[name] = result | {"start": at, "seconds": round(time.process_time() - began, 1)}
        print(
            name,
            found[name]["value"],
            found[name].get("resolution_error"),
            found[name]["start"],
            found[name]["seconds"],
            flush=True,
        )
        command = "python benchmarks/gridworld_optimum.py"
        records.write_json(RESULTS, {
            "optima": found, "tau": TAU, "hardware": records.hardware(), "provenance": records.provenance(command),
        })  # fmt: skip


def padded(every, x: np.ndarray, size: int = 512) -> np.ndarray:
    """`every` of any number of points by calls of one size, so that it compiles once."""
    values = [np.asarray(every(jnp.asarray(np.resize(x[i : i + size], (size, x.shape[1])))))[: len(x[i : i + size])]
              for i in range(0, len(x), size)]  # fmt: skip
    return np.concatenate(values)


if __name__ == "__main__":
    main()
