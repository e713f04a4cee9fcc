r"""Comparing starts by samples: f along each start's follower, or along the answer by a model learnt from all of them.

A follower that lags behind x makes f look like that of another policy, so a share of what a comparison may cost goes to
iterations in which x is held and everything else learns on; the rest measures f along the follower that each start tracks,
from trajectories of common length. Every transition of both is counted, and none beyond what was allowed is drawn.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite.learn import learnt_model, rollouts
from bilevel_rl.finite.learn.learnt_model import Seen
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.loop import noise, settings
from bilevel_rl.loop.comparison import Comparison, comparison_key
from bilevel_rl.loop.solver import Solver
from bilevel_rl.loop.stages import Stage

CUT = 1e-3  # ours: discounted sums are cut where this share of them is left

By = Literal["auto", "model", "follower"]


class TableComparison(Comparison):
    """Along the answer to each x by a model learnt from the samples of all starts, or along each start's follower.

    Args:
        by: `"model"`, `"follower"`, or `"auto"` for the model wherever the transitions suffice to learn one.
        tau: temperature of grading, None for the problem's.

    Raises:
        InvalidConfig: a solver that tracks no follower; a model where x moves the kernel; another word.
    """

    def __init__(self, problem: BilevelProblem, solver: Solver, by: str, tau: float | None):
        self.problem, self.solver = jax.tree.map(jnp.asarray, problem), solver
        self.least = least(problem, solver)
        if by not in get_args(By):
            raise InvalidConfig(message("search.by", repr(by), "it must be 'auto', 'model' or 'follower'", "Choose one"))
        # planning needs a temperature above 0: that of grading, or the solver's own
        self.by = by if tau != 0 or settings.has_temperature(solver) else "follower"
        if self.by == "model" and (problem.moves_transitions or problem.moves_start):
            raise InvalidConfig(
                message("search.by", "'model' on a problem whose transitions or start depend on x",
                        "one learnt model must serve every x", "Compare by 'follower'")
            )  # fmt: skip

    def marked(self, plan: tuple[Stage, ...]) -> tuple[Stage, ...]:
        """The stages, with those marked whose starts are compared by a learnt model."""
        beside = 0 if self.problem.objective.linear else self.least
        seen, stages = 0, []
        for stage in plan:
            share = stage.measure // 2 if beside else stage.measure  # the rest measures f, where the model can't
            seen += stage.starts * share
            fits = self.by == "model" or (self.by == "auto" and learnt_model.fits(self.problem, seen))
            stages.append(dataclasses.replace(stage, model=share >= max(beside, 2) and fits))
        return tuple(stages)

    def nothing(self) -> dict[str, np.ndarray]:
        return vars(Seen.nothing(self.problem.mdp.n_states)).copy()

    def measure(self, solvers, states, keys, number, k, stage, tau, seen):
        problem, left = self.problem, stage.measure
        pi, value, used = followers(problem, solvers, states, k), None, np.zeros(len(keys), int)
        if stage.model:
            share = left if problem.objective.linear else left // 2
            length = min(learnt_model.walk_length(problem), share)
            own = jax.vmap(lambda key: jax.random.fold_in(comparison_key(key, number), 0))(keys)
            walks = learnt_model.explore(problem, pi, own, share // length, length)
            known = Seen(**seen).plus(*walks)
            pi, value = learnt_model.answers(problem, states.x, tau or settings.temperature(self.solver, k), known)
            seen, used, left = vars(known).copy(), used + share // length * length, left - share
        if value is None:
            value, more = graded_by_samples(problem, states.x, pi, keys, number, left)
            used = used + np.asarray(more)
        return np.asarray(value), used, seen


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
    return 2 if problem.objective.linear else noise.size(problem.objective.draws(problem))


def followers(problem: BilevelProblem, solvers: Any, states: Any, k: int) -> Float[Array, "n S A"]:
    """What each start tracks."""
    return _followers(problem, solvers, states, jnp.array(k))


@eqx.filter_jit
def _followers(problem, solvers, states, k):
    return jax.vmap(lambda solver, state: solver.tracked(problem, state, k))(solvers, states)


def graded_by_samples(
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
    probe = noise.size(problem.objective.draws(problem))
    return _estimates(problem, x, pi, keys, jnp.array(stage), transitions // probe if probe else 1)


@eqx.filter_jit
def _along(problem, x, pi, keys, stage, walks: int, length: int):
    def one(x, pi, key):
        drawn = noise.uniforms(rollouts.draws(walks, length), comparison_key(key, stage))
        seen = rollouts.draw(problem.transitions(x), pi, drawn)
        weight = rollouts.discounts(seen, problem.mdp.discount).ravel()
        f = problem.objective.linear_value(x, seen.s.ravel(), seen.a.ravel(), lambda u: jnp.sum(weight * u))
        return f, jnp.asarray(walks * length)

    return jax.vmap(one)(x, pi, keys)


@eqx.filter_jit
def _estimates(problem, x, pi, keys, stage, count: int):
    probe = problem.objective.draws(problem)

    def one(x, pi, key):
        if not noise.size(probe):
            return problem.objective.value(x, pi, problem), jnp.zeros((), int)
        u = noise.uniforms(noise.Times(count, probe), comparison_key(key, stage))
        drawn = jax.lax.map(lambda u: problem.objective.sample(x, pi, problem, u), u)
        return jnp.mean(drawn.value), jnp.sum(drawn.transitions)

    return jax.vmap(one)(x, pi, keys)
