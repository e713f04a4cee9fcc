r"""Entropy-regularised control of linear systems with quadratic rewards, in closed form: a judge of neural followers.

With $z = (s, 1)$ and $y = (z, a)$,

$$z' = F y + \xi, \quad \xi \sim N(0, \Omega), \qquad r(s, a) = y^\top M y, \qquad
\max_\pi E \sum_t \gamma^t \big(r + \tau \mathcal{H}(\pi(\cdot|s_t))\big)$$

the value is $V(s) = z^\top P z$ + constant, where P solves $S = M + \gamma F^\top P F$,
$P = S_{zz} - S_{za} S_{aa}^{-1} S_{az}$ with $S_{aa}$ negative definite, and the policy is
$a \sim N\big(-S_{aa}^{-1} S_{az} z,\ -\tfrac{\tau}{2} S_{aa}^{-1}\big)$. Linear terms are those with the 1 of z.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.loop import precision

SWEEPS, TOLERANCE = 20_000, 1e-13  # ours: value iterations at most, and the relative change at which they stop


class System(eqx.Module):
    r"""Dynamics and starts.

    Attributes:
        F: [n + 1, n + 1 + m], what follows $(s, 1, a)$; its last row keeps the 1.
        noise: [n, n] $\Omega$.
        mean: [n] of the first state.
        covariance: [n, n] of the first state.
    """

    F: Float[Array, "z y"]
    noise: Float[Array, "n n"]
    mean: Float[Array, " n"]
    covariance: Float[Array, "n n"]

    @classmethod
    def of(cls, A, B, noise, mean, covariance, drift=None) -> System:
        r"""From $s' = A s + B a + d + \xi$; all in 64 bits."""
        A, B = jnp.asarray(A, float), jnp.asarray(B, float)
        n, m = B.shape
        d = jnp.zeros(n) if drift is None else jnp.asarray(drift, float)
        F = jnp.zeros((n + 1, n + 1 + m)).at[:n, :n].set(A).at[:n, n].set(d).at[:n, n + 1 :].set(B).at[n, n].set(1.0)
        return cls(F, jnp.asarray(noise, float), jnp.asarray(mean, float), jnp.asarray(covariance, float))


class GaussianLaw(NamedTuple):
    """$a \\sim N(K z, C)$ with $z = (s, 1)$, and the value that it comes from.

    Attributes:
        K: [m, n + 1].
        C: [m, m].
        P: [n + 1, n + 1], without the constant that noise and entropy add.
    """

    K: Float[Array, "m z"]
    C: Float[Array, "m m"]
    P: Float[Array, "z z"]


@precision.double
def soft_optimal(system: System, M: Float[Array, "y y"], discount, tau) -> GaussianLaw:
    r"""The optimal policy; differentiable in M, by the implicit function theorem. NaN where no finite value exists.

    Args:
        M: [n + 1 + m, n + 1 + m] symmetric.
        discount, tau: of the follower.
    """
    z = system.F.shape[0]

    def blocks(M, P):
        S = M + discount * system.F.T @ P @ system.F
        return S[:z, :z], S[:z, z:], S[z:, z:]

    def backup(M, P):
        S_zz, S_za, S_aa = blocks(M, P)
        # NaN unless S_aa is negative definite: else more is always better with this many steps to go, and a later sweep may
        # arrive at another solution of the equation, which is a saddle
        root = jnp.linalg.cholesky(-S_aa)
        found = S_zz + S_za @ jax.scipy.linalg.cho_solve((root, True), S_za.T)
        return (found + found.T) / 2  # what is not symmetric is rounding, and would grow

    def unfinished(carry):
        P, change, k = carry
        return (change > TOLERANCE * jnp.maximum(1.0, jnp.max(jnp.abs(P)))) & (k < SWEEPS)

    def sweep(carry):
        P, _, k = carry
        P_next = backup(fixed, P)
        return P_next, jnp.max(jnp.abs(P_next - P)), k + 1

    fixed = jax.lax.stop_gradient(M)
    P, change, _ = jax.lax.while_loop(unfinished, sweep, (jnp.zeros((z, z)), jnp.array(jnp.inf), 0))
    P = jax.lax.stop_gradient(jnp.where(jnp.isfinite(change), P, jnp.nan))
    slope = jax.lax.stop_gradient(jax.jacfwd(backup, argnums=1)(fixed, P)).reshape(z * z, z * z)
    P = P + jnp.linalg.solve(jnp.eye(z * z) - slope, (backup(M, P) - P).ravel()).reshape(z, z)
    _, S_za, S_aa = blocks(M, P)
    concave = jnp.all(jnp.linalg.eigvalsh(jax.lax.stop_gradient(S_aa)) < 0)  # else more is always better
    S_aa = jnp.where(concave, S_aa, jnp.nan)
    return GaussianLaw(-jnp.linalg.solve(S_aa, S_za.T), -tau / 2 * jnp.linalg.inv(S_aa), P)


@precision.double
def expected(system: System, law: GaussianLaw, U: Float[Array, "y y"], discount) -> Float[Array, ""]:
    r"""$E_d[y^\top U y] = (1 - \gamma) E\sum_t \gamma^t y_t^\top U y_t$ under a policy, from the first state's law."""
    z, n = system.F.shape[0], system.noise.shape[0]
    full = jnp.concatenate([jnp.eye(z), law.K])  # z -> the mean of y
    closed = system.F @ full
    Q = full.T @ U @ full
    # W = Q + gamma closed' W closed, in the coordinates of z
    W = jnp.linalg.solve(jnp.eye(z * z) - discount * jnp.kron(closed.T, closed.T), Q.ravel()).reshape(z, z)
    push = system.F[:, z:]
    each = jnp.trace(U[z:, z:] @ law.C) + discount * (
        jnp.trace(W @ push @ law.C @ push.T) + jnp.trace(W[:n, :n] @ system.noise)
    )
    first = jnp.concatenate([system.mean, jnp.ones(1)])
    return (1 - discount) * (first @ W @ first + jnp.trace(W[:n, :n] @ system.covariance)) + each


@precision.double
def expected_soft_value(system: System, law: GaussianLaw, discount, tau) -> Float[Array, ""]:
    r"""The follower's own $E[V(s_0)]$, entropy included, of its optimal policy; a discounted sum, not a mean."""
    n, m = system.noise.shape[0], law.C.shape[0]
    # log of the integral of exp(Q/tau): tau/2 log det(2 pi C) beside the maximum; and what noise adds to the next value
    each = tau / 2 * (m * jnp.log(2 * jnp.pi) + jnp.linalg.slogdet(law.C)[1]) + discount * jnp.trace(
        law.P[:n, :n] @ system.noise
    )
    first = jnp.concatenate([system.mean, jnp.ones(1)])
    return first @ law.P @ first + jnp.trace(law.P[:n, :n] @ system.covariance) + each / (1 - discount)
