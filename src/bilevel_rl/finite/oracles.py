r"""Exact answers, for grading. Never called inside a sample-based solver.

$$\Phi_\tau(x) = f(x, \pi^*_\tau(x)), \qquad
\nabla \Phi_{w,\tau}(x) = \nabla_x f(x, \pi^*_{w,\tau}) + \tfrac1w \big[\nabla_x J_\tau(x, \pi^*_\tau)
- \nabla_x J_\tau(x, \pi^*_{w,\tau})\big]$$
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidProblem, Unsolved, message
from bilevel_rl.finite.model import linear, planning
from bilevel_rl.finite.tables import TableProblem
from bilevel_rl.loop import precision, whole
from bilevel_rl.loop.problem import Optimum

NEWTON_TOLERANCE = 1e-12  # ours: relative size of the last step of an inner solve, 64 bit
REFUSED_SLOPE = 1e-6  # ours: logits that would still move by more than this are no optimum
WIDENINGS = 4  # ours: how often a search goes on where a box is open
RARE = 1e-12  # ours: states visited less than this feel nothing of f


@precision.double
@whole.compiled
def lower_return(problem: TableProblem, x, pi: Float[Array, "S A"], tau=0.0) -> Float[Array, ""]:
    r"""$J_\tau(x, \pi)$, the discounted sum; differentiable in x and pi."""
    return planning.expected_return(problem.transitions(x), problem.reward(x), pi, tau)


@precision.double
@whole.compiled
def policy_gradient(
    problem: TableProblem, x, pi: Float[Array, "S A"], tau, V: Float[Array, " S"] | None = None
) -> Float[Array, "S A"]:
    r"""$\nabla_\theta J_\tau = d(s)\,\pi(a|s)\,(Q - \tau\log\pi - V)/(1-\gamma)$, exactly; V of pi where it is known."""
    mdp, reward = problem.transitions(x), problem.reward(x)
    V = planning.policy_value(mdp, reward, pi, tau) if V is None else V
    log_pi = mdp.paid(jnp.log(jnp.where(pi > 0, pi, 1.0)))  # 0 log 0 = 0: an action of probability 0 pulls nothing
    advantage = planning.action_value(mdp, reward, V) - tau * log_pi - V[:, None]
    return planning.visitation(mdp, pi)[:, None] * pi * advantage / (1 - mdp.discount)


@precision.double
@whole.compiled
def lower_optimum(problem: TableProblem, x, tau) -> planning.Plan:
    r"""$\pi^*_\tau(x)$ and its values; tau = 0 (a Python number) gives the limit policy of the unregularised problem."""
    mdp, reward = problem.transitions(x), problem.faced(x, tau)
    if _is_zero(tau):
        return planning.hard_optimal(mdp, reward)
    return planning.soft_optimal(mdp, reward, tau)


@precision.double
@whole.compiled
def hyper_objective(problem: TableProblem, x, tau, plan: planning.Plan | None = None) -> Float[Array, ""]:
    r"""$\Phi_\tau(x) = f(x, \pi^*_\tau(x))$; $\Phi(x)$ at tau = 0. The problem's own where it knows it in closed form.

    Args:
        plan: the lower level's optimum at x, where it is known; a function of x where this is differentiated.
    """
    if problem.mdp is None:
        return problem.hyper_objective(x, tau)
    plan = lower_optimum(problem, x, tau) if plan is None else plan
    return problem.objective.value(x, plan.pi, problem)


@precision.double
@whole.compiled
def hyper_gradient(problem: TableProblem, x, tau) -> Float[Array, " d"]:
    r"""$\nabla \Phi_\tau(x)$ by the implicit function theorem: one Newton solve and one linear solve. $O(S^3)$ dense."""
    return jax.grad(lambda x: hyper_objective(problem, x, tau))(x)


@precision.double
@whole.compiled
def penalised_policy(problem: TableProblem, x, w, tau, max_iterations: int = 500) -> Float[Array, "S A"]:
    r"""$\pi^*_{w,\tau}(x) = \mathrm{argmax}_\pi J_\tau(x, \pi) - w f(x, \pi)$.

    Where f is linear in the visitation with utility u this is the soft optimum for the reward $r_x + (1-\gamma) w u_x$.
    Otherwise natural-gradient ascent in the logits,

    $$\theta \leftarrow \theta + \tfrac1\tau \Big(Q - \tau\log\pi - V - w\,(1-\gamma)\,
    \frac{\partial_\theta f}{d(s)\,\pi(a|s)}\Big),$$

    which is soft policy iteration when w = 0 and converges linearly at rate O(w) (ours). States that are never visited
    count nothing in f, and keep to their soft optimum.

    Returns:
        [S, A].

    Raises:
        Unsolved: the ascent does not arrive within `max_iterations`; in compiled code the policy is NaN.
    """
    if problem.objective.linear:
        return planning.soft_optimal(problem.transitions(x), problem.penalised_reward(x, w), tau).pi
    pi, left = _penalised_ascent(problem, x, jnp.asarray(w, float), jnp.asarray(tau, float), max_iterations)
    linear.refuse("penalised_policy", left, REFUSED_SLOPE, "Lower w, or raise tau or max_iterations")
    return pi


@eqx.filter_jit
def _penalised_ascent(problem: TableProblem, x, w, tau, max_iterations: int) -> tuple[Array, Array]:
    """The policy, or NaN; and the largest entry of the direction that was left, in logits."""
    mdp, reward = problem.transitions(x), problem.reward(x)
    first = planning.soft_optimal(mdp, reward, tau)
    visited = planning.visitation(mdp, first.pi) > RARE
    logits = jax.nn.log_softmax(first.Q / tau + mdp.mask)

    def upper(logits):
        return problem.objective.value(x, jnp.where(visited[:, None], jax.nn.softmax(logits), first.pi), problem)

    def lagrangian(logits):
        return planning.expected_return(mdp, reward, jax.nn.softmax(logits), tau) - w * upper(logits)

    def direction(logits):
        pi = jax.nn.softmax(logits)
        V = planning.policy_value(mdp, reward, pi, tau)
        d = planning.visitation(mdp, pi)[:, None]
        felt = visited[:, None] & (d * pi > 0)
        slope = jnp.where(felt, jax.grad(upper)(logits) / jnp.where(felt, d * pi, 1.0), 0.0)
        pull = planning.action_value(mdp, reward, V) - tau * mdp.paid(logits) - V[:, None] - w * (1 - mdp.discount) * slope
        return jnp.where(pi > 0, pull / tau, 0.0)

    def unfinished(carry):
        _, _, step, _, _, k = carry
        return (step > NEWTON_TOLERANCE) & (k < max_iterations)

    def ascend(carry):
        logits, best, _, damping, _, k = carry
        towards = direction(logits)
        candidate = jax.nn.log_softmax(logits + damping * towards)
        value = lagrangian(candidate)
        # rounding alone may lower the value by this much at the optimum
        better = value >= best - 1e-13 * (1 + jnp.abs(best))
        counted = jnp.exp(candidate) > 0
        step = jnp.max(jnp.where(counted, jnp.abs(jnp.where(better, candidate - logits, jnp.inf)), 0.0))
        return (
            jnp.where(better, candidate, logits), jnp.where(better, value, best), step,
            jnp.where(better, jnp.minimum(1.0, 1.5 * damping), damping / 4), jnp.max(jnp.abs(towards)), k + 1,
        )  # fmt: skip

    start = (logits, lagrangian(logits), jnp.array(jnp.inf), jnp.array(1.0), jnp.array(jnp.inf), 0)
    logits, _, _, _, left, _ = jax.lax.while_loop(unfinished, ascend, start)
    return jnp.where(left <= REFUSED_SLOPE, jax.nn.softmax(logits), jnp.nan), left


@precision.double
@whole.compiled
def penalty_estimate(problem: TableProblem, x, pi, pi_l, w, tau=None) -> Float[Array, " d"]:
    r"""At given followers: $\nabla_x f(x,\pi^L) + \frac1w[\nabla_x J(x,\pi) - \nabla_x J(x,\pi^L)]$.

    The entropy of a fixed policy does not depend on x, so tau matters only where x moves the transitions; the
    problem's own temperature when None.
    """
    tau = problem.temperature() if tau is None else tau

    def lagrangian(x):
        mdp, reward = problem.transitions(x), problem.reward(x)
        gap = planning.expected_return(mdp, reward, pi, tau) - planning.expected_return(mdp, reward, pi_l, tau)
        return problem.objective.value(x, pi_l, problem) + gap / w

    return jax.grad(lagrangian)(x)


@precision.double
@whole.compiled
def penalty_hyper_gradient(problem: TableProblem, x, w, tau) -> Float[Array, " d"]:
    r"""$\nabla \Phi_{w,\tau}(x)$, exactly: both followers solved. Its distance from $\nabla\Phi_\tau$ is $O(w)$.

    Raises:
        Unsolved: one of the followers was not found; in compiled code the gradient is NaN.
    """
    pi_l = penalised_policy(problem, x, w, tau)
    return _between(problem, x, pi_l, jnp.asarray(w, float), 0 if _is_zero(tau) else jnp.asarray(tau, float))


@eqx.filter_jit
def _between(problem: TableProblem, x, pi_l, w, tau) -> Array:
    return penalty_estimate(problem, x, lower_optimum(problem, x, tau).pi, pi_l, w, tau)


def _is_zero(tau) -> bool:
    """Whether tau asks for the unregularised problem: a number known before anything is compiled."""
    return isinstance(tau, (int, float)) and tau == 0


@precision.double
@whole.compiled
def lower_gap(problem: TableProblem, x, pi: Float[Array, "S A"], tau) -> Float[Array, ""]:
    r"""$J_\tau(x, \pi^*_\tau(x)) - J_\tau(x, \pi) \ge 0$: how far a follower is from optimal."""
    best = lower_return(problem, x, lower_optimum(problem, x, tau).pi, tau)
    return best - lower_return(problem, x, pi, tau)


@precision.double
def brute_force(problem: TableProblem, tau: float, points: int = 41, polish: int = 5) -> Optimum:
    """The global optimum over a box of at most three dimensions: a grid, then bounded quasi-Newton from its best points.

    Where a side of the box is open the grid covers `Problem.bounded_part`, widened fourfold while the best point lies on an
    edge of it that is no bound; `Optimum.searched` says what was covered.

    Args:
        points: grid points a dimension.
        polish: how many of the best grid points are polished with exact hyper-gradients.

    Raises:
        InvalidProblem: x has no box, or more than three dimensions; or the objective still falls at the edge of what was
            covered after `WIDENINGS`.
        Unsolved: no point of the grid has a finite value.
    """
    box = problem.box()
    d = problem.x0.shape[0]
    if box is None or d > 3:
        raise InvalidProblem(
            message(f"brute_force({problem.name})", f"{d} dimensions, box {'absent' if box is None else 'present'}",
                    "x needs a box and at most 3 dimensions", "Use multi-start exact_descent instead")
        )  # fmt: skip
    low, high = (np.asarray(b, float) for b in box)
    covered = tuple(np.asarray(side) for side in problem.bounded_part() or box)
    objective = jax.jit(lambda p, x: hyper_objective(p, x, tau))
    for widening in range(WIDENINGS + 1):
        axes = [np.linspace(covered[0][i], covered[1][i], points) for i in range(d)]
        grid = jnp.asarray(np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, d))
        values = np.asarray(jax.lax.map(lambda x: objective(problem, x), grid, batch_size=64))
        values = np.where(np.isfinite(values), values, np.inf)
        if not np.isfinite(values).any():
            raise Unsolved(
                message(f"brute_force({problem.name})", "no finite value on the whole grid", "the objective must be finite",
                        "Look at the objective with oracles.hyper_objective at a point of the box")
            )  # fmt: skip
        best_x = np.asarray(grid[np.argmin(values)])
        below, above = (best_x == covered[0]) & ~np.isfinite(low), (best_x == covered[1]) & ~np.isfinite(high)
        if not (below | above).any():
            break
        if widening == WIDENINGS:
            raise InvalidProblem(
                message(f"brute_force({problem.name})", f"an objective that still falls at {best_x.tolist()}",
                        "its minimum must lie in a bounded part of the box", "Give the open side of box() a bound")
            )  # fmt: skip
        width = covered[1] - covered[0]
        covered = covered[0] - 3 * width * below, covered[1] + 3 * width * above
    fun = jax.jit(jax.value_and_grad(lambda x: hyper_objective(problem, x, tau)))
    order = np.argsort(values)
    best_x, best = np.asarray(grid[order[0]]), float(values[order[0]])
    for index in order[:polish]:
        found = scipy.optimize.minimize(
            lambda x: tuple(np.asarray(v, float) for v in fun(jnp.asarray(x))), np.asarray(grid[index]), jac=True,
            method="L-BFGS-B", bounds=list(zip(low, high, strict=True)), options={"ftol": 1e-15, "gtol": 1e-12},
        )  # fmt: skip
        if float(found.fun) < best:
            best_x, best = np.asarray(found.x), float(found.fun)
    return Optimum(best_x, best, float(values[order[0]]), covered)
