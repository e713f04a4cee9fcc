r"""Implicit differentiation of the soft-optimal follower, in pieces that the model-based solvers share.

With $h = \tfrac1\tau\,\partial f/\partial\theta$ the derivative of f in the policy's logits $\theta = Q/\tau$ (its rows sum
to zero), and V the follower's value, $\pi = \mathrm{softmax}(Q/\tau)$, $Q = r_x + \gamma P_x V$:

$$\nabla\Phi_\tau(x) = \nabla_x f + \nabla_x \sum_{s,a} \big(h + m\,\pi\big)(s,a)\,\big(r_x + \gamma P_x V\big)(s,a), \qquad
(I - \gamma P_\pi)^\top m = b, \quad b = \gamma P^\top h .$$

m [S] is all that a solver needs to find or to track: no S x A x S x d tensor, no table a dimension of x. The solvers
differ in how: `implicit_cg` by Krylov iterations, `amd` by sweeps, `sobirl` by gradient descent on the residual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.model import planning
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem


def sweep_values(mdp: FiniteMDP, reward: Float[Array, "S A"], V: Float[Array, " S"], tau, sweeps: int):
    r"""Soft value iteration $V \leftarrow \tau\log\sum_a e^{(r + \gamma P V)/\tau}$, a fixed number of times; [S]."""
    sweep = lambda V, _: (mdp.ongoing(planning.soft_value(planning.action_value(mdp, reward, V) + mdp.mask, tau)), None)  # noqa: E731
    return jax.lax.scan(sweep, V, None, length=sweeps)[0]


class Slopes(NamedTuple):
    """Of f at a policy: $\\nabla_x f$ [d] and $h = \\tfrac1\\tau \\partial f/\\partial\\theta$ [S, A]."""

    grad_x: Float[Array, " d"]
    h: Float[Array, "S A"]


def objective_slopes(problem: BilevelProblem, x: Float[Array, " d"], Q: Float[Array, "S A"], tau) -> Slopes:
    """By differentiating `UpperObjective.value`; one linear solve where f looks at the visitation."""
    f = lambda x, theta: problem.objective.value(x, jax.nn.softmax(theta), problem)  # noqa: E731
    grad_x, grad_theta = jax.grad(f, (0, 1))(x, Q / tau)
    return Slopes(grad_x, grad_theta / tau)


def source(mdp: FiniteMDP, h: Float[Array, "S A"]) -> Float[Array, " S"]:
    r"""$b = \gamma P^\top h$; nothing comes back from an end."""
    return mdp.ongoing(mdp.discount * mdp.flow(h))


def flow_residual(mdp: FiniteMDP, pi: Float[Array, "S A"], m: Float[Array, " S"]) -> Float[Array, " S"]:
    r"""$(I - \gamma P_\pi)^\top m$. Cost $O(SAK)$."""
    return m - mdp.ongoing(mdp.discount * mdp.flow(m[:, None] * pi))


def adjoint_residual(mdp: FiniteMDP, pi: Float[Array, "S A"], v: Float[Array, " S"]) -> Float[Array, " S"]:
    r"""$(I - \gamma P_\pi)\, v$, the adjoint of `flow_residual`. Cost $O(SAK)$."""
    return v - mdp.discount * jnp.sum(pi * mdp.expect(mdp.ongoing(v)), -1)


def operators(mdp: FiniteMDP, pi: Float[Array, "S A"]) -> tuple[Callable[[Array], Array], Callable[[Array], Array]]:
    """`flow_residual` and `adjoint_residual` at a policy, by one S x S matrix where that is smaller than sparse tables."""
    S = mdp.n_states
    if S > planning.DENSE_LIMIT or mdp.successors[0].size < S:
        return (lambda m: flow_residual(mdp, pi, m)), (lambda v: adjoint_residual(mdp, pi, v))
    P = mdp.discount * mdp.under(pi)
    if mdp.ends is not None:
        P = jnp.where(mdp.ends, 0.0, P)
    return (lambda m: m - m @ P), (lambda v: v - P @ v)


def contract(
    problem: BilevelProblem, x: Float[Array, " d"], weight: Float[Array, "S A"], V: Float[Array, " S"]
) -> Float[Array, " d"]:
    r"""$\nabla_x \sum_{s,a} \omega(s,a)\,(r_x + \gamma P_x V)(s,a)$ at fixed V: one reverse derivative, whatever d."""

    def total(x):
        ahead = problem.mdp.discount * problem.transitions(x).expect(V) if _moves(problem) else 0.0
        return jnp.sum(weight * (problem.reward(x) + ahead))

    return jax.grad(total)(x)


def _moves(problem: BilevelProblem) -> bool:
    return problem.moves_transitions or (problem.moves_start and problem.mdp.episodic)
