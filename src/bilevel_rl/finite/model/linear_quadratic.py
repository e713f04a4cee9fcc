r"""Linear-quadratic followers: the entropy-regularised optimum is a Gaussian policy, and all of it is in closed form.

$$s' = A s + B a + \xi, \quad \xi \sim N(0, \Omega), \qquad
\max_\pi E \sum_t \gamma^t \big(-s_t^\top W s_t - a_t^\top R a_t + \tau\, \mathcal{H}(\pi(\cdot|s_t))\big)$$

with $P = W + \gamma A^\top P (A - B K)$, $K = \gamma (R + \gamma B^\top P B)^{-1} B^\top P A$, the policy is
$a \sim N(-K s, \tfrac{\tau}{2} (R + \gamma B^\top P B)^{-1})$. States stay Gaussian: means and covariances say all.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.loop import precision, whole

TOLERANCE = 1e-14  # ours: relative change of P at which the doubling stops, 64 bit
DOUBLINGS = 60  # ours: 2^60 steps of value iteration; without a solution P is not finite by then


class LinearQuadratic(eqx.Module):
    r"""Dynamics and costs of the follower, and where it starts, $s_0 \sim N(m, S)$.

    Attributes:
        A, B: [n, n] and [n, m] dynamics.
        W, R: [n, n] and [m, m] costs of state and action, R positive definite.
        noise: [n, n] $\Omega$.
        mean, covariance: [n] m and [n, n] S.
        discount: $\gamma$ of the follower.
    """

    A: Float[Array, "n n"]
    B: Float[Array, "n m"]
    W: Float[Array, "n n"]
    R: Float[Array, "m m"]
    noise: Float[Array, "n n"]
    mean: Float[Array, " n"]
    covariance: Float[Array, "n n"]
    discount: float | Float[Array, ""]


class GaussianPolicy(NamedTuple):
    """$a \\sim N(-K s, C)$, and the cost-to-go matrix it comes from.

    Attributes:
        K: [m, n] gain.
        covariance: [m, m] C.
        P: [n, n] cost to go.
    """

    K: Float[Array, "m n"]
    covariance: Float[Array, "m m"]
    P: Float[Array, "n n"]


class Moments(NamedTuple):
    """Means [T, n] and covariances [T, n, n] of the states $s_0 \\dots s_{T-1}$."""

    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]


@precision.double
@whole.compiled
def soft_optimal(lq: LinearQuadratic, tau) -> GaussianPolicy:
    r"""The optimal policy. Differentiable once in everything, by the implicit function theorem.

    The Riccati equation is solved by structure-preserving doubling (a dozen steps), and one step of its fixed-point
    equation is differentiated, as in `planning.soft_optimal`.

    References:
        Doubling: Chu, Fan, Lin, Wang 2004. Cost O(n^3) a step, O(n^6) once for the derivative.
    """
    fixed = jax.tree.map(jax.lax.stop_gradient, lq)
    n, root = lq.A.shape[0], jnp.sqrt(jnp.asarray(fixed.discount))

    def unfinished(carry):
        _, _, H, change, k = carry
        return (change > TOLERANCE * jnp.max(jnp.abs(H))) & (k < DOUBLINGS)

    def double(carry):
        F, G, H, _, k = carry
        inverse = jnp.linalg.inv(jnp.eye(n) + G @ H)
        more = F.T @ H @ inverse @ F
        return F @ inverse @ F, G + F @ inverse @ G @ F.T, H + more, jnp.max(jnp.abs(more)), k + 1

    G = fixed.discount * fixed.B @ jnp.linalg.solve(fixed.R, fixed.B.T)
    start = (root * fixed.A, G, fixed.W, jnp.array(jnp.inf), 0)
    P = jax.lax.while_loop(unfinished, double, start)[2]

    def backup(lq, P):
        return lq.W + lq.discount * lq.A.T @ P @ (lq.A - lq.B @ _gain(lq, P))

    P = jax.lax.stop_gradient(P)
    slope = jax.lax.stop_gradient(jax.jacfwd(backup, argnums=1)(fixed, P)).reshape(n * n, n * n)
    residual = (backup(lq, P) - P).ravel()
    P = P + jnp.linalg.solve(jnp.eye(n * n) - slope, residual).reshape(n, n)
    curvature = lq.R + lq.discount * lq.B.T @ P @ lq.B
    return GaussianPolicy(_gain(lq, P), tau / 2 * jnp.linalg.inv(curvature), P)


def _gain(lq: LinearQuadratic, P: Float[Array, "n n"]) -> Float[Array, "m n"]:
    return lq.discount * jnp.linalg.solve(lq.R + lq.discount * lq.B.T @ P @ lq.B, lq.B.T @ P @ lq.A)


@precision.double
def moments(lq: LinearQuadratic, policy: GaussianPolicy, steps: int) -> Moments:
    """The states' law under the policy, for as many steps. Cost O(T n^3)."""
    closed = lq.A - lq.B @ policy.K
    noise = lq.B @ policy.covariance @ lq.B.T + lq.noise

    def step(law, _):
        mean, covariance = law
        return (closed @ mean, closed @ covariance @ closed.T + noise), law

    return Moments(*jax.lax.scan(step, (lq.mean, lq.covariance), length=steps)[1])


@precision.double
def expected_quadratic(at: Moments, M: Float[Array, "n n"]) -> Float[Array, " T"]:
    r"""$E[s_t^\top M s_t]$ at each step."""
    return jnp.einsum("ti,ij,tj->t", at.mean, M, at.mean) + jnp.einsum("ij,tji->t", M, at.covariance)


@precision.double
def expected_bump(at: Moments, centre: Float[Array, " n"], width: Float[Array, "n n"]) -> Float[Array, " T"]:
    r"""$E \exp\big(-\tfrac12 (s_t - c)^\top \Sigma^{-1} (s_t - c)\big)$ at each step, $\Sigma$ the squared width.

    $$= \sqrt{\frac{|\Sigma|}{|\Sigma + C_t|}}\; e^{-\frac12 (m_t - c)^\top (\Sigma + C_t)^{-1} (m_t - c)}$$
    """

    def one(mean, covariance):
        total, away = width + covariance, mean - centre
        scale = jnp.sqrt(jnp.linalg.det(width) / jnp.linalg.det(total))
        return scale * jnp.exp(-away @ jnp.linalg.solve(total, away) / 2)

    return jax.vmap(one)(at.mean, at.covariance)
