r"""Comparing starts by samples: what an iteration costs, how followers settle at a held x, and f along each follower.

A follower that lags behind x makes f look like that of another policy, so a share of what a comparison may cost goes to
iterations in which x is held and everything else learns on; the rest measures f along the follower that each start tracks,
from trajectories of common length. Every transition of both is counted, and none beyond what was allowed is drawn.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite.learn import rollouts
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State

CUT = 1e-3  # ours: discounted sums are cut where this share of them is left
PROBES = 16  # ours: iterations, at k = 0, 1, 2, 4, ..., that show whether every one costs the same


class Cost(NamedTuple):
    """Transitions of one iteration.

    Attributes:
        each: rounded up mean; 0 for solvers that use the model.
        varies: whether iterations differ, as with walks of random length.
    """

    each: int
    varies: bool


def iteration_cost(problem: BilevelProblem, solver: Solver) -> Cost:
    """What an iteration draws, measured by taking some from the start."""

    used = _probes(*jax.tree.map(jnp.asarray, (problem, solver)))
    return Cost(math.ceil(float(jnp.mean(used))), bool(jnp.any(used != used[0])))


@eqx.filter_jit
def _probes(problem: BilevelProblem, solver: Solver) -> Int[Array, " n"]:
    key = jax.random.key(0)
    state = solver.init(problem, problem.x0, key)

    def one(k):
        noise = jax.random.uniform(jax.random.fold_in(key, k), (solver.draws(problem),))
        return solver.step(problem, state, k, noise).samples - state.samples

    return jax.lax.map(one, jnp.asarray([0] + [2**i for i in range(PROBES - 1)]))


class Guarded(Solver):
    """A solver whose x can be held and whose transitions end at a limit: an iteration that would pass it is not taken.

    Attributes:
        solver: the solver.
        held: 1 where x stays and everything else learns on, else 0.
        limit: of the state's `samples`.
        limited: whether the limit is watched; needed only where iterations differ in cost.
    """

    solver: Solver
    held: Float[Array, ""] | float = 0.0
    limit: Float[Array, ""] | float = math.inf
    limited: bool = eqx.field(static=True, default=False)

    def draws(self, problem: BilevelProblem) -> int:
        return self.solver.draws(problem)

    def init(self, problem: BilevelProblem, x0, key) -> State:
        return self.solver.init(problem, x0, key)

    def step(self, problem: BilevelProblem, state: State, k, noise) -> State:
        new = self.solver.step(problem, state, k, noise)
        new = eqx.tree_at(lambda s: s.x, new, jnp.where(self.held > 0, state.x, new.x))
        if self.limited:
            new = jax.tree.map(lambda a, b: jnp.where(new.samples <= self.limit, a, b), new, state)
        return new


def horizon(problem: BilevelProblem) -> int:
    """Length of the trajectories along which f is measured."""
    gamma = float(problem.mdp.discount)
    return max(2, math.ceil(math.log(CUT) / math.log(gamma))) if gamma > 0 else 2


def least(problem: BilevelProblem, solver: Solver) -> int:
    """The fewest transitions from which f can be measured along a start's follower.

    Raises:
        InvalidConfig: a solver that tracks no follower.
    """
    shapes = jax.eval_shape(lambda x: solver.init(problem, x, jax.random.key(0)), problem.x0)
    if jax.eval_shape(lambda state: solver.tracked(problem, state, 0), shapes) is None:
        raise InvalidConfig(
            message(f"search with {solver.name}", "a solver that samples and tracks no follower",
                    "starts are compared along the follower that the solver tracks", "Write Solver.tracked")
        )  # fmt: skip
    # an estimate of another objective takes at most as many transitions as uniform numbers
    return 2 if problem.objective.linear else problem.objective.draws(problem)


def followers(problem: BilevelProblem, solvers: Any, states: Any, k: int) -> Float[Array, "n S A"]:
    """What each start tracks."""
    return _followers(problem, solvers, states, jnp.array(k))


@eqx.filter_jit
def _followers(problem, solvers, states, k):
    return jax.vmap(lambda solver, state: solver.tracked(problem, state, k))(solvers, states)


def compare(
    problem: BilevelProblem, x: Float[Array, "n d"], pi: Float[Array, "n S A"], keys: Array, stage: int, transitions: int
) -> tuple[Float[Array, " n"], Int[Array, " n"]]:
    """f along one policy of each start, from samples.

    Args:
        keys: one a start.
        transitions: at most so many are drawn for each; at least `least`.

    Returns:
        Estimates, and the transitions that each took.
    """
    if problem.objective.linear:
        length = min(horizon(problem), transitions)  # a tiny budget cuts all starts alike
        return _along(problem, x, pi, keys, jnp.array(stage), transitions // length, length)
    probe = problem.objective.draws(problem)
    return _estimates(problem, x, pi, keys, jnp.array(stage), transitions // probe if probe else 1)


def key_of(key: Array, stage: Int[Array, ""] | int) -> Array:
    """Of a comparison; of a fold that no iteration uses."""
    return jax.random.fold_in(jax.random.fold_in(key, 2**32 - 2), stage)


@eqx.filter_jit
def _along(problem, x, pi, keys, stage, walks: int, length: int):
    def one(x, pi, key):
        u = jax.random.uniform(key_of(key, stage), (rollouts.draws(walks, length),))
        seen = rollouts.draw(problem.transitions(x), pi, u, walks, length)
        weight = rollouts.discounts(seen, problem.mdp.discount).ravel()
        u = problem.objective.bonus_at(x, seen.s.ravel(), seen.a.ravel())
        return problem.objective.cost(x) - jnp.sum(weight * u), jnp.asarray(walks * length)

    return jax.vmap(one)(x, pi, keys)


@eqx.filter_jit
def _estimates(problem, x, pi, keys, stage, count: int):
    probe = problem.objective.draws(problem)

    def one(x, pi, key):
        if not probe:
            return problem.objective.value(x, pi, problem), jnp.zeros((), int)
        u = jax.random.uniform(key_of(key, stage), (count, probe))
        drawn = jax.lax.map(lambda u: problem.objective.sample(x, pi, problem, u), u)
        return jnp.mean(drawn.value), jnp.sum(drawn.transitions)

    return jax.vmap(one)(x, pi, keys)
