r"""Quasi-Newton descent with the exact hyper-gradient: what `exact_descent` reaches, in far fewer iterations.

$$p = -H_k \nabla\Phi_\tau(x_k), \qquad x_{k+1} = \Pi_X\big(x_k + t\, p\big)$$

with $H_k$ the limited-memory BFGS matrix of the last m pairs $s = x_{j+1} - x_j$,
$y = \nabla\Phi_\tau(x_{j+1}) - \nabla\Phi_\tau(x_j)$, and t from a search along the projected path, such that

$$\Phi_\tau(x(t)) \le \Phi_\tau(x_k) + c_1 \nabla\Phi_\tau(x_k)^\top (x(t) - x_k), \qquad
\nabla\Phi_\tau(x(t))^\top \big(x(2t) - x(t)\big) \ge c_2 \nabla\Phi_\tau(x_k)^\top (x(t) - x_k) .$$
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.finite import planning
from bilevel_rl.finite.closed_form import ClosedFormProblem
from bilevel_rl.finite.followers import check_fields
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State

DECREASE, CURVATURE = 1e-4, 0.9  # c_1 and c_2: Nocedal & Wright 2006, sec. 3.1
POSITIVE = 1e-12  # ours: pairs with s'y below this share of |s||y| say nothing about curvature
SHORTEST, LONGEST = 0.1, 0.5  # Nocedal & Wright, sec. 3.5: by what a step that was too long is shortened
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


class ExactQuasiNewton(Solver):
    r"""Limited-memory BFGS on the exact hyper-objective, inside x's set; uses the model, no samples.

    An iteration makes one direction and one search along it. Bounds that the gradient pushes against are held, and the pairs
    count on the other coordinates only. A trial whose objective or gradient is not finite is too long. Where no trial is
    good enough, the pairs are forgotten and the next iteration takes the plain gradient; where that fails too x stays: it is
    stationary to rounding. The objective never rises. The first iteration only evaluates x0, and so does the first after the
    temperature has changed (a search that cools).

    Runs of a batch go one after the other, each with as many trials as it needs: the same bits as alone.

    Args:
        step_size: of the first trial along the negative gradient, where there are no pairs; the search lengthens or shortens
            it as needed.
        tau: temperature of the hyper-objective, in units of reward.
        memory: m >= 1 pairs; 30, because four rooms took three times as many iterations with 10 (ours).
        trials: at most this many evaluations an iteration.

    Example:
        >>> from bilevel_rl.finite import solve
        >>> from bilevel_rl.finite.problems import GoalPlacement
        >>> trace = solve(GoalPlacement(), ExactQuasiNewton(), iterations=25)
        >>> round(float(trace["objective"][0, -1]), 6)
        -0.636279

    References:
        Two-loop recursion: Liu & Nocedal 1989. Bounds: the two-metric projection of Bertsekas 1982. Search by doubling and
        bisection: Lewis & Overton 2013, its second condition restated for a path that bends (ours). An evaluation costs one
        Newton solve, begun at the last x's answer, and one linear solve, O(S^3); most iterations need one. Besides, O(m d).
    """

    step_size: float = 0.1
    tau: float = 0.05
    memory: int = eqx.field(static=True, default=30)
    trials: int = eqx.field(static=True, default=20)

    name: ClassVar[str] = "exact_quasi_newton"
    references: ClassVar[tuple[str, ...]] = ()
    closed_form: ClassVar[bool] = True

    def check(self, problem: BilevelProblem) -> None:
        check_fields(
            self.name,
            ("step_size", self.step_size, self.step_size > 0, "it must be above 0"),
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("memory", self.memory, self.memory >= 1, "it must be at least 1"),
            ("trials", self.trials, self.trials >= 1, "it must be at least 1"),
        )

    def draws(self, problem: BilevelProblem) -> int:
        return 0

    def init(self, problem: BilevelProblem, x0, key) -> QuasiNewtonState:
        zero, pairs = jnp.zeros(()), jnp.zeros((self.memory, x0.shape[0]))
        V = jnp.zeros(0 if problem.mdp is None else problem.mdp.n_states)
        return QuasiNewtonState(
            x0,
            jnp.zeros((), int),
            zero,
            jnp.zeros_like(x0),
            V,
            pairs,
            pairs,
            jnp.full((), NEVER),
            jnp.zeros((), bool),
        )

    def step(self, problem: BilevelProblem, state: QuasiNewtonState, k, noise) -> QuasiNewtonState:
        return _step(problem, self, state)


@jax.custom_batching.sequential_vmap
def _step(problem: BilevelProblem, solver: ExactQuasiNewton, state: QuasiNewtonState) -> QuasiNewtonState:
    tau = jnp.asarray(solver.tau, float)
    # the first iteration, or the first at another temperature: f and g are all it finds
    stale = state.tau != tau
    p, known = _direction(state, _free(problem, state), solver.step_size)
    p = jnp.where(stale, 0.0, p)
    evaluate = jax.value_and_grad(lambda x: _hyper_objective(problem, x, tau, state.V), has_aux=True)
    x, f, g, V = _along(problem, evaluate, state, p, solver.trials, stale)

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
