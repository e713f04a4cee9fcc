"""Is this problem, or this solver, well posed? Run before any work starts, and by `bilevel-rl check`."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite import oracles
from bilevel_rl.finite.model.mdp import check_rewards
from bilevel_rl.finite.tables import TableProblem
from bilevel_rl.loop.problem import check_start


def check_problem(problem: TableProblem, thorough: bool = True) -> None:
    """Raise `InvalidProblem` unless the problem is well posed.

    Always: x0 is a finite vector inside x's set; the reward is [S, A], finite and differentiable there. When
    `thorough`, also at random points: the reward's gradient equals central differences, `reward_at` agrees with
    `reward`, `project` is idempotent, the objective is finite and its `sample` has the shapes it should.

    Example:
        >>> from bilevel_rl.finite.problems.goal_placement import GoalPlacement
        >>> check_problem(GoalPlacement())
    """
    name, x = type(problem).__name__, jnp.asarray(problem.x0)
    check_start(problem)
    if problem.mdp is None:
        _check_closed_form(problem, name)
        return
    check_rewards(problem.reward(x), problem.mdp, f"{name}.reward(x0)")
    _check_ends(problem, name)
    try:
        slope = jax.jacrev(problem.reward)(x) if thorough else jax.grad(lambda x: problem.reward(x).sum())(x)
    except Exception as error:  # whatever JAX raises: the reward can't be traced or differentiated
        raise InvalidProblem(
            message(f"{name}.reward", f"{type(error).__name__}: {str(error).splitlines()[0]}",
                    "the reward must be differentiable by JAX in x", "Write it with jax.numpy, without float() or numpy")
        ) from error  # fmt: skip
    if not bool(jnp.all(jnp.isfinite(slope))):
        raise InvalidProblem(
            message(f"{name}.reward", "a gradient with NaN or infinity at x0", "it must be finite",
                    "Guard square roots, logarithms and divisions at zero")
        )  # fmt: skip
    _check_steps(problem, name)
    if thorough:
        for point in _points(problem):
            _check_point(problem, name, point)


def _check_closed_form(problem: TableProblem, name: str) -> None:
    """Finite, and the derivative is that of central differences, along one direction at x0."""
    tau, x = problem.temperature(), problem.x0
    value, gradient = _graded(problem, x, tau)
    _check_finite(name, x, value, gradient)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    ahead, behind = (_graded(problem, x + step * direction, tau)[0] for step in (1e-5, -1e-5))
    central, traced = float(ahead - behind) / 2e-5, float(gradient @ direction)
    if abs(central - traced) > 1e-5 * (1 + abs(traced)):
        raise InvalidProblem(
            message(f"{name}.hyper_objective", f"a derivative {traced:.6g} where central differences give {central:.6g}",
                    "it must be differentiable in x", "Differentiate fixed points by the implicit function theorem")
        )  # fmt: skip


def _check_ends(problem: TableProblem, name: str) -> None:
    """Nothing is paid once all is over, at either level."""
    ends = problem.mdp.ends
    if ends is None:
        return
    tables = {"reward": problem.reward(problem.x0)}
    if problem.objective.linear:
        tables["objective.bonus"] = problem.objective.bonus(problem.x0)
    for word, table in tables.items():
        if bool(jnp.any(ends[:, None] & (table != 0))):
            state = int(jnp.argmax(ends & jnp.any(table != 0, -1)))
            raise InvalidProblem(
                message(f"{name}.{word}[{state}]", "a payment in a state that is an end", "ends must pay zero",
                        "Pay on the way into the end, or in the state before it")
            )  # fmt: skip


def _check_finite(name: str, x: jax.Array, value: jax.Array, gradient: jax.Array) -> None:
    if not bool(jnp.isfinite(value)) or not bool(jnp.all(jnp.isfinite(gradient))):
        raise InvalidProblem(
            message(f"{name}.objective", f"value {float(value)}, gradient {gradient.tolist()} at {x.tolist()}",
                    "the upper objective and its hyper-gradient must be finite", "Check the objective's formula")
        )  # fmt: skip


@eqx.filter_jit
def _graded(problem: TableProblem, x: jax.Array, tau) -> tuple[jax.Array, jax.Array]:
    return jax.value_and_grad(lambda x: oracles.hyper_objective(problem, x, tau))(x)


def _points(problem: TableProblem, n: int = 3) -> list[jax.Array]:
    noise = np.random.default_rng(0).normal(size=(n, problem.x0.shape[0]))
    return [problem.x0] + [problem.project(problem.x0 + 0.1 * jnp.asarray(z)) for z in noise]


def _check_steps(problem: TableProblem, name: str) -> None:
    """A reward that changes with x while its derivative is zero is made of steps: no gradient method can see it."""
    start, *others = _points(problem, 8)
    rewards = [problem.reward(point) for point in (start, *others)]
    changed, end = max(
        ((float(jnp.max(jnp.abs(r - rewards[0]))), i) for i, r in enumerate(rewards[1:])), key=lambda pair: pair[0]
    )
    away = others[end] - start
    slopes = [jax.jvp(problem.reward, (start + share * away,), (away,))[1] for share in (0.0, 0.5, 1.0)]
    if changed > 1e-9 and not any(bool(jnp.any(slope != 0)) for slope in slopes):
        raise InvalidProblem(
            message(f"{name}.reward",
                    f"a change of {changed:.3g} between x0 and {others[end].tolist()} with a derivative of zero",
                    "the reward must be differentiable in x", "Replace rounding, argmax, thresholds by smooth functions")
        )  # fmt: skip


def _check_point(problem: TableProblem, name: str, x: jax.Array) -> None:
    check_rewards(problem.reward(x), problem.mdp, f"{name}.reward({x.tolist()})")
    direction = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    step = 1e-5
    forward = (problem.reward(x + step * direction) - problem.reward(x - step * direction)) / (2 * step)
    traced = jax.jvp(problem.reward, (x,), (direction,))[1]
    if float(jnp.max(jnp.abs(forward - traced))) > 1e-5 * (1 + float(jnp.max(jnp.abs(traced)))):
        raise InvalidProblem(
            message(f"{name}.reward", f"a derivative that differs from central differences by "
                    f"{float(jnp.max(jnp.abs(forward - traced))):.3g} at {x.tolist()}",
                    "the reward must be differentiable in x", "Replace rounding, argmax, thresholds by smooth functions")
        )  # fmt: skip
    S, A = problem.mdp.n_states, problem.mdp.n_actions
    s, a = jnp.divmod(jnp.arange(S * A), A)
    if float(jnp.max(jnp.abs(problem.reward_at(x, s, a) - problem.reward(x).ravel()))) > 1e-9:
        raise InvalidProblem(
            message(f"{name}.reward_at", f"values other than reward(x)[s, a] at {x.tolist()}",
                    "both must describe the same reward", "Make reward_at(x, s, a) equal reward(x)[s, a]")
        )  # fmt: skip
    again = problem.project(problem.project(x))
    if float(jnp.max(jnp.abs(again - problem.project(x)))) > 1e-9:
        raise InvalidProblem(
            message(f"{name}.project", "a point that moves when projected twice", "projection must be idempotent",
                    "Return the nearest point of x's set")
        )  # fmt: skip
    value, gradient = _graded(problem, x, problem.temperature())
    _check_finite(name, x, value, gradient)
