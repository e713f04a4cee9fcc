"""The one meter of samples: what an iteration draws, and how many iterations a budget pays for."""

from __future__ import annotations

import math
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop import noise
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.solver import Solver

PROBES = 16  # ours: iterations, at k = 0, 1, 2, 4, ..., that show whether every one costs the same


class Cost(NamedTuple):
    """Transitions of one iteration.

    Attributes:
        each: rounded up mean; 0 for solvers that use the model.
        varies: whether iterations differ, as with walks of random length.
    """

    each: int
    varies: bool


def iteration_cost(problem: Problem, solver: Solver) -> Cost:
    """What an iteration draws, measured by taking some from the start; as the problem says where none can be taken."""
    said = problem.draws_each(solver)
    if said is not None:
        return Cost(said, False)
    used = _probes(*jax.tree.map(jnp.asarray, (problem, solver)))
    return Cost(math.ceil(float(jnp.mean(used))), bool(jnp.any(used != used[0])))


@eqx.filter_jit
def _probes(problem: Problem, solver: Solver) -> Int[Array, " n"]:
    key = jax.random.key(0)
    state = solver.init(problem, problem.x0, key)

    def one(k):
        drawn = noise.uniforms(solver.draws(problem), jax.random.fold_in(key, k))
        return solver.step(problem, state, k, drawn).samples - state.samples

    return jax.lax.map(one, jnp.asarray([0] + [2**i for i in range(PROBES - 1)]))


def samples_per_iteration(problem: Problem, solver: Solver) -> int:
    """Transitions that one iteration draws, on average where iterations differ; 0 for solvers that use the model."""
    return iteration_cost(problem, solver).each


def iterations_for(problem: Problem, solver: Solver, samples: int, otherwise: int = 1000) -> int:
    """Iterations that a sample budget pays for; `otherwise` for solvers that draw no samples.

    Raises:
        InvalidConfig: less than one.
    """
    each = samples_per_iteration(problem, solver)
    if each == 0:
        return otherwise
    if samples < each:
        raise InvalidConfig(
            message(f"{solver.name}: samples", samples, f"one iteration draws {each} transitions",
                    "Raise the budget, or lower chains or the inner iterations")
        )  # fmt: skip
    return samples // each
