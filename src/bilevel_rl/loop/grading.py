"""Grading a batch of states: what every engine reports, and what the problem measures besides."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl import metrics as M
from bilevel_rl.loop.problem import Optimum, Problem
from bilevel_rl.loop.solver import Solver, State
from bilevel_rl.loop.stepping import over_runs
from bilevel_rl.schedules import TimeScales


def measure(
    problem: Problem, solver: Solver, states: State, k: int, *, tau: float, evaluate: bool, optimum: Optimum | None = None
) -> dict[str, Array]:
    """Every metric of every run, [B] each, and arrays that draw run 0, whose names begin with `scene/`.

    Args:
        solver, states: batched over runs.
        k: iteration.
        tau: temperature of grading; 0 grades the unregularised problem.
        evaluate: whether the problem's own `measures` are taken.
        optimum: best known x and value; adds `gap` and `distance`.
    """
    best = None if optimum is None else (jnp.asarray(optimum.x), jnp.asarray(optimum.value))
    return _measure(problem, solver, states, jnp.array(k), jnp.asarray(tau) if tau else 0, evaluate, best)


@eqx.filter_jit
def _measure(
    problem: Problem, solver: Solver, states: State, k: Int[Array, ""], tau: Any, evaluate: bool,
    optimum: tuple[Float[Array, " d"], Float[Array, ""]] | None,
) -> dict[str, Array]:  # fmt: skip
    def one(solver, state):
        values = {M.SAMPLES.key: state.samples, M.ITERATION.key: k}
        if isinstance(getattr(solver, "scales", None), TimeScales):
            values |= solver.scales.at(k)._asdict()
        if not evaluate:
            return values, None
        more, found = problem.measures(solver, state, k, tau)
        values |= more
        if optimum is not None and M.OBJECTIVE.key in values:
            best_x, best = optimum
            values |= {M.GAP.key: values[M.OBJECTIVE.key] - best, M.DISTANCE.key: jnp.linalg.norm(state.x - best_x)}
        return values, found

    values, found = over_runs(lambda each: one(*each), (solver, states), problem)
    if evaluate:
        drawn = problem.scene(states.x[0], jax.tree.map(lambda v: v[0], found))
        values |= {f"scene/{key}": value for key, value in drawn.items()}
    return values
