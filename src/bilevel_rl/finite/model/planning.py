r"""Values, visitations and optimal policies of a finite MDP, entropy-regularised or not.

Values are discounted sums; $d$ sums to one; entropy in nats; tau in units of reward. Fixed points are differentiated by
theory (the implicit function theorem), never by unrolling. Up to `DENSE_LIMIT` states linear systems are solved by
factorisation, beyond it by BiCGSTAB on sparse products, whose memory is linear in S.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import bicgstab
from jax.scipy.special import entr
from jaxtyping import Array, Float

from bilevel_rl.finite.model import small
from bilevel_rl.finite.model.mdp import FiniteMDP

DENSE_LIMIT = 1024  # ours: above this many states a factorisation costs more than the Krylov iterations
KRYLOV_TOLERANCE = 1e-13  # ours: relative residual of an iterative linear solve, 64 bit
KRYLOV_RESTARTS = 50  # ours: each gains about six digits, so three are enough unless rounding stands in the way


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


def entropy(pi: Float[Array, "*S A"]) -> Float[Array, "*S"]:
    r"""$E(\pi, s) = -\sum_a \pi(a|s) \log \pi(a|s)$ in nats."""
    return jnp.sum(entr(pi), axis=-1)


def counted_entropy(mdp: FiniteMDP, pi: Float[Array, "S A"]) -> Float[Array, " S"]:
    r"""$E(\pi, s)$ as values count it: zero in states that are ends."""
    return mdp.ongoing(entropy(pi))


@jax.custom_batching.sequential_vmap
def _factor(A: Float[Array, "S S"]) -> tuple[Array, Array]:
    return jax.scipy.linalg.lu_factor(A)


@jax.custom_batching.sequential_vmap
def _back_substitute(lu: Array, pivots: Array, b: Float[Array, " S"]) -> Float[Array, " S"]:
    return jax.scipy.linalg.lu_solve((lu, pivots), b)


@jax.custom_batching.sequential_vmap
def _back_substitute_transposed(lu: Array, pivots: Array, b: Float[Array, " S"]) -> Float[Array, " S"]:
    return jax.scipy.linalg.lu_solve((lu, pivots), b, trans=1)


def dense_solve(A: Float[Array, "S S"], b: Float[Array, " S"]) -> Float[Array, " S"]:
    """Solve A v = b by LU, one system of a batch after the other.

    Not `jnp.linalg.solve`: its batched factorisation hands the batch to the thread pool that it itself runs on and
    waits. Two of them in one program then wait for each other for ever on a machine of two cores. One at a time is
    also what makes a batch agree bit for bit with its members.
    """
    lu, pivots = _factor(jax.lax.stop_gradient(A))
    return jax.lax.custom_linear_solve(
        lambda v: A @ v, b,
        solve=lambda _, b: _back_substitute(lu, pivots, b),
        transpose_solve=lambda _, b: _back_substitute_transposed(lu, pivots, b),
    )  # fmt: skip


def _krylov(apply: Callable[[Array], Array], b: Float[Array, " S"]) -> Float[Array, " S"]:
    """Solve (I - gamma P) v = b by BiCGSTAB, started again on what the last attempt left over.

    BiCGSTAB alone breaks down on visitations from a uniform start: its shadow residual is then the constant vector, an
    eigenvector of the transposed system. And the residual it updates drifts away from the true one. So every attempt
    begins with two sweeps v <- b + gamma P v, which turn the residual, and counts only if the true residual fell.
    """

    def unfinished(carry):
        _, residual, k = carry
        return (jnp.linalg.norm(residual) > KRYLOV_TOLERANCE * jnp.linalg.norm(b)) & (k < KRYLOV_RESTARTS)

    def refine(carry):
        v, residual, k = carry
        for _ in range(2):
            v = v + residual
            residual = b - apply(v)
        tried = v + bicgstab(apply, residual, tol=1e-6, maxiter=500)[0]
        left = b - apply(tried)
        better = jnp.linalg.norm(left) < jnp.linalg.norm(residual)  # not where the attempt broke down in NaN
        return jnp.where(better, tried, v), jnp.where(better, left, residual), k + 1

    return jax.lax.while_loop(unfinished, refine, (jnp.zeros_like(b), b, 0))[0]


def _solve(mdp: FiniteMDP, pi: Float[Array, "S A"], b: Float[Array, " S"], transpose: bool) -> Float[Array, " S"]:
    r"""Solve $(I - \gamma P_\pi) v = b$, or its transpose."""
    if mdp.n_states <= DENSE_LIMIT:
        A = jnp.eye(mdp.n_states) - mdp.discount * mdp.under(pi)
        return dense_solve(A.T if transpose else A, b)

    def apply(v):
        moved = mdp.flow(v[:, None] * pi) if transpose else jnp.sum(pi * mdp.expect(v), axis=-1)
        return v - mdp.discount * moved

    return jax.lax.custom_linear_solve(apply, b, solve=_krylov, transpose_solve=_krylov)


def policy_value(mdp: FiniteMDP, reward: Float[Array, "S A"], pi: Float[Array, "S A"], tau=0.0) -> Float[Array, " S"]:
    r"""$V^\pi_\tau = (I - \gamma P_\pi)^{-1} \sum_a \pi (r + \tau E(\pi, \cdot))$. Cost $O(S^3)$ dense."""
    return _solve(mdp, pi, jnp.sum(pi * reward, axis=-1) + tau * counted_entropy(mdp, pi), transpose=False)


def action_value(mdp: FiniteMDP, reward: Float[Array, "S A"], V: Float[Array, " S"]) -> Float[Array, "S A"]:
    r"""$Q(s,a) = r(s,a) + \gamma (P V)(s,a)$."""
    return reward + mdp.discount * mdp.expect(V)


def expected_return(mdp: FiniteMDP, reward: Float[Array, "S A"], pi: Float[Array, "S A"], tau=0.0) -> Float[Array, ""]:
    r"""$J_\tau(\pi) = \sum_s \rho(s) V^\pi_\tau(s)$, the discounted sum."""
    return jnp.dot(mdp.start, policy_value(mdp, reward, pi, tau))


def visitation(mdp: FiniteMDP, pi: Float[Array, "S A"]) -> Float[Array, " S"]:
    r"""$d^\pi(s) = (1-\gamma) \sum_k \gamma^k \Pr(s_k = s)$; sums to one."""
    return _solve(mdp, pi, (1 - mdp.discount) * mdp.start, transpose=True)


def soft_policy(Q: Float[Array, "*S A"], tau) -> Float[Array, "*S A"]:
    r"""$\pi(a|s) \propto \exp(Q(s,a)/\tau)$."""
    return small.softmax(Q / tau)


def soft_value(Q: Float[Array, "*S A"], tau) -> Float[Array, "*S"]:
    r"""$V(s) = \tau \log \sum_a \exp(Q(s,a)/\tau)$."""
    return tau * small.log_sum_exp(Q / tau)


def soft_optimal(
    mdp: FiniteMDP,
    reward: Float[Array, "S A"],
    tau,
    V: Float[Array, " S"] | None = None,
    tolerance: float = 1e-12,
    max_iterations: int = 100,
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
        allowed: [S, A] 0 where an action is allowed and -inf where not; None allows all.

    Returns:
        Plan.
    """
    mask = 0.0 if allowed is None else allowed

    def backup(mdp, reward, tau, V):
        return mdp.ongoing(soft_value(action_value(mdp, reward, V) + mask, tau))

    def policy(mdp, reward, tau, V):
        return soft_policy(action_value(mdp, reward, V) + mask, tau)

    fixed = jax.tree.map(jax.lax.stop_gradient, (mdp, reward, jnp.asarray(tau, float)))
    V = jnp.zeros(mdp.n_states) if V is None else jax.lax.stop_gradient(V)
    scale = jnp.max(jnp.abs(fixed[1])) + fixed[2]

    def residual_of(V):
        return jnp.max(jnp.abs(backup(*fixed, V) - V))

    def unfinished(carry):
        V, residual, k = carry
        return (residual > tolerance * jnp.maximum(scale, jnp.max(jnp.abs(V)))) & (k < max_iterations)

    def newton(carry):
        V, _, k = carry
        V = V + _solve(fixed[0], policy(*fixed, V), backup(*fixed, V) - V, transpose=False)
        return V, residual_of(V), k + 1

    # one backup first, so that the first policy already looks one step ahead
    V = backup(*fixed, V)
    V, _, _ = jax.lax.while_loop(unfinished, newton, (V, residual_of(V), 0))
    # One more Newton step, now differentiated: its value changes nothing, its derivative is the implicit one,
    # dV = (I - gamma P_pi)^-1 d(backup), because the derivative of the matrix is multiplied by a residual of zero.
    V = jax.lax.stop_gradient(V)
    V = V + _solve(fixed[0], policy(*fixed, V), backup(mdp, reward, tau, V) - V, transpose=False)
    Q = action_value(mdp, reward, V)
    return Plan(V, Q, soft_policy(Q + mask, tau), residual_of(V))


def hard_optimal(mdp: FiniteMDP, reward: Float[Array, "S A"], tie: float = 1e-9, max_iterations: int = 1000) -> Plan:
    r"""The unregularised optimum, and of all optimal policies the limit $\lim_{\tau \to 0} \pi^*_\tau$.

    Policy iteration finds $V^*$. Where several actions are optimal, $Q_\tau = Q^* + \tau Q^E + o(\tau)$ with $Q^E$ the
    value of future entropy among optimal policies, so the limit is $\pi \propto \exp Q^E$ on the optimal actions (ours:
    derived). Piecewise constant in the reward: its derivative is zero almost everywhere.

    Args:
        tie: actions within this much of the best, relative to the value's size, count as optimal.
    """

    def greedy(V):
        return jnp.argmax(action_value(mdp, reward, V), axis=-1)

    def unfinished(carry):
        _, _, gain, k = carry
        return (gain > 0) & (k < max_iterations)

    def improve(carry):
        V, choice, _, k = carry
        V_new = policy_value(mdp, reward, jax.nn.one_hot(choice, mdp.n_actions))
        Q = action_value(mdp, reward, V_new)
        better = jnp.max(Q, -1) > jnp.take_along_axis(Q, choice[:, None], -1)[:, 0] + tie * (1 + jnp.abs(V_new))
        return V_new, jnp.where(better, jnp.argmax(Q, -1), choice), jnp.sum(better), k + 1

    zero = jnp.zeros(mdp.n_states)
    V, _, _, _ = jax.lax.while_loop(unfinished, improve, (zero, greedy(zero), jnp.array(1), 0))
    Q = action_value(mdp, reward, V)
    allowed = jnp.where(Q >= jnp.max(Q, -1, keepdims=True) - tie * (1 + jnp.abs(V))[:, None], 0.0, -jnp.inf)
    limit = soft_optimal(mdp, jnp.zeros_like(Q), 1.0, allowed=allowed)
    return Plan(V, Q, jax.lax.stop_gradient(limit.pi), jnp.max(jnp.abs(jnp.max(Q, -1) - V)))


@partial(jax.jit, static_argnames=("max_iterations",))
def value_iteration(
    mdp: FiniteMDP, reward: Float[Array, "S A"], tau, tolerance=1e-10, max_iterations: int = 100_000
) -> Plan:
    """Soft value iteration: linear convergence, no linear solve, the least memory. The yardstick of `soft_optimal`."""

    def sweep(carry):
        V, _, k = carry
        V_new = mdp.ongoing(soft_value(action_value(mdp, reward, V), tau))
        return V_new, jnp.max(jnp.abs(V_new - V)), k + 1

    def unfinished(carry):
        return (carry[1] > tolerance) & (carry[2] < max_iterations)

    V, residual, _ = jax.lax.while_loop(unfinished, sweep, (jnp.zeros(mdp.n_states), jnp.array(jnp.inf), 0))
    Q = action_value(mdp, reward, V)
    return Plan(V, Q, soft_policy(Q, tau), residual)
