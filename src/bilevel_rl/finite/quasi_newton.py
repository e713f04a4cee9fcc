r"""Limited-memory BFGS on a hyper-objective that is known exactly, inside x's set: one step.

$$p = -H_k \nabla\Phi_\tau(x_k), \qquad x_{k+1} = \Pi_X\big(x_k + t\, p\big)$$

with $H_k$ the limited-memory BFGS matrix of the last m pairs $s = x_{j+1} - x_j$,
$y = \nabla\Phi_\tau(x_{j+1}) - \nabla\Phi_\tau(x_j)$, and t from a search along the projected path, such that

$$\Phi_\tau(x(t)) \le \Phi_\tau(x_k) + c_1 \nabla\Phi_\tau(x_k)^\top (x(t) - x_k), \qquad
\nabla\Phi_\tau(x(t))^\top \big(x(2t) - x(t)\big) \ge c_2 \nabla\Phi_\tau(x_k)^\top (x(t) - x_k) .$$

Its problem is the true one for `exact_quasi_newton`, one that was learnt for `certainty_equivalence`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.finite.closed_form import ClosedFormProblem
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import State

DECREASE, CURVATURE = 1e-4, 0.9  # c_1 and c_2: Nocedal & Wright 2006, sec. 3.1
POSITIVE = 1e-12  # ours: pairs with s'y below this share of |s||y| say nothing about curvature
SHORTEST, LONGEST = 0.1, 0.5  # Nocedal & Wright, sec. 3.5: by what a step that was too long is shortened
MEMORY, TRIALS = 30, 20  # ours: pairs kept (four rooms took three times as many iterations with 10); evaluations a step
NEVER = -1.0  # ours: the temperature of what was not evaluated yet


class QuasiNewtonState(State):
    r"""What is carried from one x to the next.

    Attributes:
        f, g: $\Phi_\tau(x)$ and its gradient [d].
        V: [S] the follower's value, from which Newton's method goes on at the next x; empty for followers in closed form.
        S, Y: [m, d] pairs of steps and changes of the gradient, the newest last; rows of zeros are empty.
        tau: temperature at which f and g hold; -1 before the first iteration.
        settled: no step along the negative gradient lowers the objective any more.
    """

    f: Float[Array, ""]
    g: Float[Array, " d"]
    V: Float[Array, " S"]
    S: Float[Array, "m d"]
    Y: Float[Array, "m d"]
    tau: Float[Array, ""]
    settled: Bool[Array, ""]


class _Point(NamedTuple):
    """A point of the path, and what was found there."""

    x: Float[Array, " d"]
    f: Float[Array, ""]
    g: Float[Array, " d"]
    V: Float[Array, " S"]


class _Search(NamedTuple):
    """Of t it is known that `low` is short enough and `high` too long."""

    t: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    best: _Point
    trials: Int[Array, ""]
    done: Bool[Array, ""]


def begin(problem: BilevelProblem, x: Float[Array, " d"], memory: int) -> QuasiNewtonState:
    """At x, with nothing evaluated yet."""
    pairs = jnp.zeros((memory, x.shape[0]))
    V = jnp.zeros(0 if problem.mdp is None else problem.mdp.n_states)
    return QuasiNewtonState(
        x, jnp.zeros((), int), jnp.zeros(()), jnp.zeros_like(x), V, pairs, pairs, jnp.full((), NEVER), jnp.zeros((), bool)
    )


def step(problem: BilevelProblem, state: QuasiNewtonState, step_size, tau, trials: int) -> QuasiNewtonState:
    """One direction and one search along it; runs of a batch go one after the other.

    Args:
        step_size: of the first trial along the negative gradient, where there are no pairs.
        tau: temperature of the hyper-objective; at another one than the last only f and g are found.
        trials: at most this many evaluations.
    """
    alone = jax.custom_batching.sequential_vmap(functools.partial(_step, trials=trials))
    return alone(problem, state, jnp.asarray(step_size, float), jnp.asarray(tau, float))


def _step(problem: BilevelProblem, state: QuasiNewtonState, step_size, tau, trials: int) -> QuasiNewtonState:
    # the first iteration, or the first at another temperature: f and g are all it finds
    stale = state.tau != tau
    p, known = _direction(state, _free(problem, state), step_size)
    p = jnp.where(stale, 0.0, p)
    evaluate = jax.value_and_grad(lambda x: _hyper_objective(problem, x, tau, state.V), has_aux=True)
    x, f, g, V = _along(problem, evaluate, state, p, trials, stale)

    s, y = x - state.x, g - state.g
    moved = jnp.any(s != 0)
    keep = moved & (s @ y > POSITIVE * jnp.linalg.norm(s) * jnp.linalg.norm(y))
    S, Y = (
        jnp.where(keep, jnp.roll(pairs, -1, axis=0).at[-1].set(new), jnp.where(moved, pairs, 0.0))
        for pairs, new in ((state.S, s), (state.Y, y))
    )
    settled = ~stale & ~moved & (state.settled | ~known)
    return QuasiNewtonState(x, state.samples, f, g, V, S, Y, tau, settled)


def _hyper_objective(
    problem: BilevelProblem, x, tau, V: Float[Array, " S"]
) -> tuple[Float[Array, ""], Float[Array, " S"]]:
    """`oracles.hyper_objective`, its Newton solve begun at V; and the follower's value."""
    if isinstance(problem, ClosedFormProblem):
        return problem.hyper_objective(x, tau), V
    plan = planning.soft_optimal(problem.transitions(x), problem.reward(x), tau, V=V)
    return problem.objective.value(x, plan.pi, problem), plan.V


def _free(problem: BilevelProblem, here: QuasiNewtonState) -> Bool[Array, " d"]:
    """The coordinates that are not held by a bound against which the gradient pushes."""
    box = problem.box()
    if box is None:
        return jnp.ones(here.x.shape, bool)
    return ~(((here.x <= box[0]) & (here.g > 0)) | ((here.x >= box[1]) & (here.g < 0)))


def _direction(
    state: QuasiNewtonState, free: Bool[Array, " d"], step_size
) -> tuple[Float[Array, " d"], Bool[Array, ""]]:
    """-H g on the free coordinates, and whether any pair told of curvature."""
    S, Y, q = jnp.where(free, state.S, 0.0), jnp.where(free, state.Y, 0.0), jnp.where(free, state.g, 0.0)
    curvature = jnp.sum(S * Y, -1)
    good = curvature > POSITIVE * jnp.linalg.norm(S, axis=-1) * jnp.linalg.norm(Y, axis=-1)
    rho = jnp.where(good, 1 / jnp.where(good, curvature, 1.0), 0.0)

    def back(q, pair):
        s, y, rho = pair
        a = rho * (s @ q)
        return q - a * y, a

    def forth(r, pair):
        s, y, rho, a = pair
        return r + s * (a - rho * (y @ r)), None

    q, a = jax.lax.scan(back, q, (S, Y, rho), reverse=True)
    newest = good.shape[0] - 1 - jnp.argmax(good[::-1])
    known = jnp.any(good)
    scale = jnp.where(known, curvature[newest] / jnp.where(known, jnp.sum(Y[newest] ** 2), 1.0), step_size)
    return -jax.lax.scan(forth, scale * q, (S, Y, rho, a))[0], known


def _along(
    problem: BilevelProblem, evaluate: Callable, here: QuasiNewtonState, p, trials: int, stale
) -> _Point:
    """The lowest of the points that were tried and are low enough, or `here`; if that is stale, evaluated anew."""

    def unfinished(search: _Search):
        return ~search.done & (search.trials < trials)

    def attempt(search: _Search):
        t = search.t
        x = problem.project(here.x + t * p)
        (f, V), g = evaluate(x)
        promised = here.g @ (x - here.x)
        finite = jnp.isfinite(f) & jnp.all(jnp.isfinite(g))
        enough = finite & (promised < 0) & (f <= here.f + DECREASE * promised)
        # as far again, where the path still goes on: would it bring almost as much?
        steep = g @ (problem.project(here.x + 2 * t * p) - x) < CURVATURE * promised
        take = stale | (enough & (f <= search.best.f))
        best = jax.tree.map(lambda a, b: jnp.where(take, a, b), _Point(x, f, g, V), search.best)
        low, high = jnp.where(enough, t, search.low), jnp.where(enough, search.high, t)

        rise = f - here.f - promised
        parabola = jnp.where(finite & (rise > 0), -promised / (2 * jnp.where(rise > 0, rise, 1.0)), SHORTEST)
        shorter = jnp.where(low > 0, (low + high) / 2, t * jnp.clip(parabola, SHORTEST, LONGEST))
        t = jnp.where(jnp.isinf(high), 2 * t, shorter)
        return _Search(t, low, high, best, search.trials + 1, (enough & ~steep) | jnp.all(x == here.x))

    idle = ~stale & (here.settled | ~jnp.any(p != 0))
    best = _Point(here.x, here.f, here.g, here.V)
    start = _Search(jnp.ones(()), jnp.zeros(()), jnp.full((), jnp.inf), best, jnp.zeros((), int), idle)
    return jax.lax.while_loop(unfinished, attempt, start).best
