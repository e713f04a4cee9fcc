r"""Values, visitations and optimal policies of a finite MDP, entropy-regularised or not.

Values are discounted sums; $d$ sums to one; entropy in nats; tau in units of reward. Fixed points are differentiated by
theory (the implicit function theorem), never by unrolling. Every linear system states its residual (`linear`), and every
optimum its Bellman residual: what misses its tolerance is NaN in compiled code and `Unsolved` outside of it.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Float

from bilevel_rl.finite.model import linear, small
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.loop import precision, whole

DENSE_LIMIT = 1024  # ours: above this many states a factorisation costs more than sparse products
REFUSED = 1e-9  # ours: an optimum with a larger relative Bellman residual is none; Newton's steps leave 1e-12 or less
ROUNDING = 64 * 2.0**-52  # ours: what a sum of terms of size 1 may be off, in hard_optimal's comparisons
NEARLY_SINGULAR = "Check the probabilities and rewards for NaN, or lower the discount"


class Plan(NamedTuple):
    """An optimal policy and its values.

    Attributes:
        V: [S] optimal value, a discounted sum.
        Q: [S, A] value of an action.
        pi: [S, A] the optimal policy.
        residual: largest Bellman residual left, in units of reward.
    """

    V: Float[Array, " S"]
    Q: Float[Array, "S A"]
    pi: Float[Array, "S A"]
    residual: Float[Array, ""]


@precision.double
def entropy(pi: Float[Array, "*S A"]) -> Float[Array, "*S"]:
    r"""$E(\pi, s) = -\sum_a \pi(a|s) \log \pi(a|s)$ in nats; 0 log 0 = 0, and an action of probability 0 pulls nothing."""
    some = pi > 0
    return jnp.sum(jnp.where(some, entr(jnp.where(some, pi, 1.0)), 0.0), axis=-1)


@precision.double
def counted_entropy(mdp: FiniteMDP, pi: Float[Array, "S A"]) -> Float[Array, " S"]:
    r"""$E(\pi, s)$ as values count it: zero in states that are ends."""
    return mdp.ongoing(entropy(pi))


@precision.double
def dense_solve(A: Float[Array, "S S"], b: Float[Array, " S"], beside: Any = 0.0) -> Float[Array, " S"]:
    """Solve A v = b by LU, for matrices like $I - \\gamma P$; differentiable. See `linear.dense_solution`.

    Args:
        A: [S, S].
        b: [S].
        beside: [S] what b is a difference of; 0 where it is none.

    Raises:
        Unsolved: a residual above `linear.REFUSED`; in compiled code v is NaN.
    """
    found = linear.dense_solution(A, b, beside=beside)
    linear.refuse("planning.dense_solve", found.residual, linear.REFUSED, NEARLY_SINGULAR)
    return found.v


def _solve(
    mdp: FiniteMDP, pi: Float[Array, "S A"], b: Float[Array, " S"], transpose: bool, beside: Any = 0.0
) -> Float[Array, " S"]:  # fmt: skip
    r"""Solve $(I - \gamma P_\pi) v = b$, or its transpose."""
    found = linear.solved(mdp, pi, b, transpose, dense=mdp.n_states <= DENSE_LIMIT, beside=beside)
    where = f"a linear system of {mdp.n_states} states, discount {mdp.discount}"
    linear.refuse(where, found.residual, linear.REFUSED, NEARLY_SINGULAR)
    return found.v


@precision.double
@whole.compiled
def policy_value(mdp: FiniteMDP, reward: Float[Array, "S A"], pi: Float[Array, "S A"], tau=0.0) -> Float[Array, " S"]:
    r"""$V^\pi_\tau = (I - \gamma P_\pi)^{-1} \sum_a \pi (r + \tau E(\pi, \cdot))$. Cost $O(S^3)$ dense."""
    return _solve(mdp, pi, mdp.ongoing(jnp.sum(pi * reward, axis=-1)) + tau * counted_entropy(mdp, pi), transpose=False)


@precision.double
def action_value(mdp: FiniteMDP, reward: Float[Array, "S A"], V: Float[Array, " S"]) -> Float[Array, "S A"]:
    r"""$Q(s,a) = r(s,a) + \gamma (P V)(s,a)$; no reward is paid in an end."""
    return mdp.paid(reward) + mdp.discount * mdp.expect(V)


@precision.double
@whole.compiled
def expected_return(mdp: FiniteMDP, reward: Float[Array, "S A"], pi: Float[Array, "S A"], tau=0.0) -> Float[Array, ""]:
    r"""$J_\tau(\pi) = \sum_s \rho(s) V^\pi_\tau(s)$, the discounted sum."""
    return jnp.dot(mdp.start, policy_value(mdp, reward, pi, tau))


@precision.double
@whole.compiled
def visitation(mdp: FiniteMDP, pi: Float[Array, "S A"]) -> Float[Array, " S"]:
    r"""$d^\pi(s) = (1-\gamma) \sum_k \gamma^k \Pr(s_k = s)$; sums to one."""
    return _solve(mdp, pi, (1 - mdp.discount) * mdp.start, transpose=True)


@precision.double
def soft_policy(Q: Float[Array, "*S A"], tau) -> Float[Array, "*S A"]:
    r"""$\pi(a|s) \propto \exp(Q(s,a)/\tau)$."""
    return small.softmax(Q / tau)


@precision.double
def soft_value(Q: Float[Array, "*S A"], tau) -> Float[Array, "*S"]:
    r"""$V(s) = \tau \log \sum_a \exp(Q(s,a)/\tau)$."""
    return tau * small.log_sum_exp(Q / tau)


@precision.double
@whole.compiled
def soft_optimal(
    mdp: FiniteMDP,
    reward: Float[Array, "S A"],
    tau,
    V: Float[Array, " S"] | None = None,
    tolerance: float = 1e-12,
    max_iterations: int = 1000,
    allowed: Float[Array, "S A"] | None = None,
) -> Plan:
    r"""The entropy-regularised optimum $\pi^*_\tau = \mathrm{argmax}_\pi J_\tau(\pi)$ by Newton's method.

    $$V = \tau \log \sum_a \exp\big((r + \gamma P V)/\tau\big)$$

    Newton on this equation is soft policy iteration: each step evaluates the current policy exactly. Differentiable
    (once, forward or backward) in `reward`, `tau` and the transition probabilities, by the implicit function theorem.

    Args:
        mdp: the MDP.
        reward: [S, A].
        tau: temperature above 0, in units of reward.
        V: [S] where to start; warm starts save iterations.
        tolerance: relative Bellman residual at which to stop.
        max_iterations: bound on the Newton steps.
        allowed: [S, A] 0 where an action is allowed and -inf where not; None allows what the MDP allows.

    Returns:
        Plan.

    Raises:
        Unsolved: the relative Bellman residual stays above `REFUSED`; in compiled code the plan is NaN.
    """
    mask = mdp.mask if allowed is None else allowed

    def backup(mdp, reward, tau, V):
        return mdp.ongoing(soft_value(action_value(mdp, reward, V) + mask, tau))

    def policy(mdp, reward, tau, V):
        return soft_policy(action_value(mdp, reward, V) + mask, tau)

    fixed = jax.tree.map(jax.lax.stop_gradient, (mdp, reward, jnp.asarray(tau, float)))
    V = jnp.zeros(mdp.n_states) if V is None else jax.lax.stop_gradient(V)
    scale = jnp.max(jnp.abs(_counted(mdp, fixed[1]))) + fixed[2]

    def residual_of(V):
        return jnp.max(jnp.abs(backup(*fixed, V) - V))

    def unfinished(carry):
        V, residual, k = carry
        return (residual > tolerance * jnp.maximum(scale, jnp.max(jnp.abs(V)))) & (k < max_iterations)

    def newton(carry):
        V, _, k = carry
        V = V + _solve(fixed[0], policy(*fixed, V), backup(*fixed, V) - V, transpose=False, beside=V)
        return V, residual_of(V), k + 1

    # one backup first, so that the first policy already looks one step ahead
    V = backup(*fixed, V)
    V, _, _ = jax.lax.while_loop(unfinished, newton, (V, residual_of(V), 0))
    # One more Newton step, now differentiated: its value changes nothing, its derivative is the implicit one,
    # dV = (I - gamma P_pi)^-1 d(backup), because the derivative of the matrix is multiplied by a residual of zero.
    V = jax.lax.stop_gradient(V)
    V = V + _solve(fixed[0], policy(*fixed, V), backup(mdp, reward, tau, V) - V, transpose=False, beside=V)
    Q = action_value(mdp, reward, V)
    return _stated(f"soft_optimal on {mdp.n_states} states", Plan(V, Q, soft_policy(Q + mask, tau), residual_of(V)), scale)


@precision.double
@whole.compiled
def hard_optimal(mdp: FiniteMDP, reward: Float[Array, "S A"], tie: float = 1e-9, max_iterations: int = 1000) -> Plan:
    r"""The unregularised optimum, and of all optimal policies the limit $\lim_{\tau \to 0} \pi^*_\tau$.

    Policy iteration finds $V^*$. It begins with the uniform policy and goes on to the uniform policy among the actions
    that can't be told apart, so that a reward is seen from all states that can reach it and not one step further every
    iteration. Where several actions are optimal, $Q_\tau = Q^* + \tau Q^E + o(\tau)$ with $Q^E$ the value of future entropy
    among optimal policies, so the limit is $\pi \propto \exp Q^E$ on the optimal actions (ours: derived). Piecewise
    constant in the reward: its derivative is zero almost everywhere.

    Args:
        tie: an action counts as optimal within this share of $(1-\gamma)\,U$, where U is the value of the reward's
            size $|r|$ on its way; rounding of U is allowed for as well.

    Raises:
        Unsolved: policy iteration has not ended after `max_iterations`; in compiled code the plan is NaN.
    """
    mask = mdp.mask
    still, fixed = jax.lax.stop_gradient((mdp, _counted(mdp, reward)))
    size = jnp.abs(fixed)

    def evaluated(pi):
        """V, Q, the size of Q's terms, and what of Q is rounding."""
        dense = mdp.n_states <= DENSE_LIMIT
        V, off = linear.solved(still, pi, jnp.sum(pi * fixed, -1), transpose=False, dense=dense)
        U, _ = linear.solved(still, pi, jnp.sum(pi * size, -1), transpose=False, dense=dense)
        missed = off * (jnp.max(size) + jnp.max(jnp.abs(V)))
        scale = size + still.discount * still.expect(jnp.abs(U))
        return V, action_value(still, fixed, V) + mask, scale, ROUNDING * scale + 4 * missed

    def among_best(Q, slack):
        return Q + slack >= jnp.max(Q - slack, -1, keepdims=True)

    def unfinished(carry):
        *_, gains, k = carry
        return gains & (k < max_iterations)

    def improve(carry):
        _, pi, (before, *_), _, k = carry
        V, Q, scale, slack = evaluated(pi)
        best = among_best(Q, slack)
        width = 2 * jnp.max(jnp.where(best, slack, 0.0), -1)
        gains = jnp.any(jnp.max(Q - slack, -1) - V > width)
        # a gain that the last step promised and V does not show was rounding; NaN ends the loop too
        rose = jnp.any(V > before + width)
        return pi, best / jnp.sum(best, -1, keepdims=True), (V, Q, scale, slack), gains & rose, k + 1

    uniform = soft_policy(jnp.zeros_like(fixed) + mask, 1.0)
    first = (jnp.full(mdp.n_states, -jnp.inf), fixed, fixed, fixed)
    start = (uniform, uniform, first, jnp.array(True), 0)
    pi, _, (_, Q, scale, slack), running, _ = jax.lax.while_loop(unfinished, improve, start)
    best = among_best(Q, slack + tie * (1 - mdp.discount) * scale)
    limit = soft_optimal(mdp, jnp.zeros_like(Q), 1.0, allowed=jnp.where(best, 0.0, -jnp.inf))
    # once more, now differentiated: where no action is about to change place, dV is that of the policy's own value
    reward = _counted(mdp, reward)
    V = policy_value(mdp, reward, pi)
    residual = jnp.where(running, jnp.inf, jnp.max(jnp.abs(mdp.ongoing(jnp.max(Q, -1)) - V)))
    plan = Plan(V, action_value(mdp, reward, V), jax.lax.stop_gradient(limit.pi), residual)
    return _stated(f"hard_optimal on {mdp.n_states} states", plan, jnp.max(size))


def _counted(mdp: FiniteMDP, reward: Float[Array, "S A"]) -> Float[Array, "S A"]:
    """The rewards that can be earned: zero in ends, and for actions that are not allowed."""
    reward = mdp.paid(reward)
    return reward if mdp.allowed is None else jnp.where(mdp.allowed, reward, 0.0)


def _stated(where: str, plan: Plan, scale: Float[Array, ""]) -> Plan:
    """The plan, or what stands for none where its Bellman residual is too large."""
    fixed = jax.lax.stop_gradient((plan.residual, plan.V, scale))
    size = jnp.maximum(fixed[2], jnp.max(jnp.abs(fixed[1])))
    relative = jnp.where(size == 0, fixed[0], fixed[0] / jnp.where(size == 0, 1.0, size))
    linear.refuse(where, relative, REFUSED, "Raise max_iterations, or the temperature; check the rewards for NaN")
    return Plan(*(jnp.where(relative <= REFUSED, part, jnp.nan) for part in plan[:3]), plan.residual)


@precision.double
def value_iteration(
    mdp: FiniteMDP, reward: Float[Array, "S A"], tau, tolerance=1e-10, max_iterations: int = 100_000
) -> Plan:
    """Soft value iteration: linear convergence, no linear solve, the least memory. The yardstick of `soft_optimal`.

    Raises:
        Unsolved: sweeps still change V by more than `tolerance` after `max_iterations`; in compiled code the plan is NaN.
    """
    plan = _swept(mdp, reward, tau, tolerance, max_iterations)
    linear.refuse("value_iteration", plan.residual, tolerance, "Raise max_iterations, or take soft_optimal")
    return plan


@partial(jax.jit, static_argnames=("max_iterations",))
def _swept(mdp: FiniteMDP, reward: Float[Array, "S A"], tau, tolerance, max_iterations: int) -> Plan:
    mask = mdp.mask

    def sweep(carry):
        V, _, k = carry
        V_new = mdp.ongoing(soft_value(action_value(mdp, reward, V) + mask, tau))
        return V_new, jnp.max(jnp.abs(V_new - V)), k + 1

    def unfinished(carry):
        return (carry[1] > tolerance) & (carry[2] < max_iterations)

    V, residual, _ = jax.lax.while_loop(unfinished, sweep, (jnp.zeros(mdp.n_states), jnp.array(jnp.inf), 0))
    Q = action_value(mdp, reward, V)
    plan = Plan(V, Q, soft_policy(Q + mask, tau), residual)
    return Plan(*(jnp.where(residual <= tolerance, part, jnp.nan) for part in plan[:3]), residual)
