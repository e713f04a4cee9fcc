"""Is this solver one? For solvers written elsewhere: what the loop relies on, tried on one problem."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop import noise, precision, stepping
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.solver import Solver, State, check_compiled, check_fits

AGREE = 1e-6  # ours: relative; a batch adds up in another order than a run alone, which rounding may show


@precision.double
def check_solver(solver: Solver, problem: Problem, iterations: int = 5, seed: int = 0) -> None:
    """Raise unless a solver keeps what the loop relies on, tried for a few iterations on a problem.

    Its first state has x0 and a whole number of samples; a step keeps the structure, shapes and dtypes of the state; x stays
    in its set, everything finite, samples never fall; a run in a batch is the run alone.

    Raises:
        InvalidConfig: the first of these that fails, and where; settings that are not allowed.
        InvalidProblem: the problem is ill-posed, or lacks what the solver needs.

    Example:
        >>> from bilevel_rl.finite.problems import GoalPlacement
        >>> from bilevel_rl.finite.solvers import ExactDescent
        >>> check_solver(ExactDescent(), GoalPlacement(rows=3, columns=3))
    """
    problem.check(thorough=False)
    check_fits(solver, problem)
    check_compiled("check_solver", problem)
    problem = jax.tree.map(jnp.asarray, problem)
    state = solver.init(problem, problem.x0, jax.random.key(seed))
    _check_first(solver, problem, state)
    _check_kept(solver, problem, state)
    keys = stepping.run_keys(seed, 3)
    stacked = stepping.stack([solver], 3)
    states = stepping.first_states(problem, stacked, jnp.tile(problem.x0, (3, 1)), keys)
    pick = lambda tree: jax.tree.map(lambda v: v[:1], tree)  # noqa: E731
    alone = pick(states)
    for k in range(iterations):
        before = states.samples
        states, finite = stepping.advance(problem, stacked, states, keys, jnp.array(k), 1)
        alone, _ = stepping.advance(problem, pick(stacked), alone, keys[:1], jnp.array(k), 1)
        _check_step(solver, problem, states, np.asarray(finite), bool(jnp.any(states.samples < before)), k)
    _check_same(solver, pick(states), alone)


def _refuse(solver: Solver, what: str, allowed: str, remedy: str) -> InvalidConfig:
    return InvalidConfig(message(f"solver {solver.name}", what, allowed, remedy))


def _check_first(solver: Solver, problem: Problem, state: Any) -> None:
    if not isinstance(state, State):
        raise _refuse(solver, f"init returned {type(state).__name__}", "it must be a State", "Derive it from loop.State")
    if state.x.shape != problem.x0.shape or bool(jnp.any(state.x != problem.x0)):
        raise _refuse(solver, f"init put x at {state.x.tolist()}", f"it must be x0, {problem.x0.tolist()}", "Pass x0 on")
    if jnp.shape(state.samples) or not jnp.issubdtype(jnp.asarray(state.samples).dtype, jnp.integer):
        raise _refuse(solver, "samples that are no whole number", "it must be an integer scalar", "jnp.zeros((), int)")


def _check_kept(solver: Solver, problem: Problem, state: State) -> None:
    """By shapes alone: nothing is computed."""
    drawn = noise.fill(solver.draws(problem), jnp.zeros(noise.size(solver.draws(problem))))
    after = jax.eval_shape(lambda s, z: solver.step(problem, s, jnp.array(0), z), state, drawn)
    kept: Any = jax.tree.structure(state)
    if kept != jax.tree.structure(after):
        raise _refuse(solver, "a state of another structure after a step", "a step must keep it", "Return every field")
    old, new = jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(after)
    for (path, a), b in zip(old, new, strict=True):
        if jnp.shape(a) != b.shape or jnp.asarray(a).dtype != b.dtype:
            name = jax.tree_util.keystr(path).lstrip(".")
            raise _refuse(solver, f"{name} {jnp.asarray(a).dtype}{list(jnp.shape(a))} became {b.dtype}{list(b.shape)}",
                          "a step must keep shapes and dtypes", "Cast it, or begin with the other one")  # fmt: skip


def _check_step(solver: Solver, problem: Problem, states: State, finite: np.ndarray, fell: bool, k: int) -> None:
    if not finite.all():
        raise _refuse(solver, f"a value that is not finite at iteration {k}", "all must be", "Lower its step sizes")
    away = jnp.max(jnp.abs(jax.vmap(problem.project)(states.x) - states.x))
    if float(away) > 1e-9:
        raise _refuse(solver, f"x is {float(away):.3g} outside its set at iteration {k}", "it must stay inside",
                      "End the step with problem.project")  # fmt: skip
    if fell:
        raise _refuse(solver, f"samples that fell at iteration {k}", "they are counted up", "Add to state.samples")


def _check_same(solver: Solver, batched: State, alone: State) -> None:
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(batched), jax.tree.leaves(alone), strict=True):
        if not np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=AGREE, atol=AGREE):
            name = jax.tree_util.keystr(path).lstrip(".")
            raise _refuse(solver, f"{name} in a batch differs from the run alone", "runs must not know of each other",
                          "Leave batches to the loop")  # fmt: skip
