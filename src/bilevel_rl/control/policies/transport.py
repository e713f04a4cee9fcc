r"""How far two flows carry the same noise apart: a bound on the Wasserstein distance of their laws.

$$W_2(p, q) \le \int_0^1 e^{\int_t^1 L(s)\,ds}\; \big(E\,|v(X_t, t) - u(X_t, t)|^2\big)^{1/2}\, dt$$

with X along v and L(t) the Lipschitz constant of u: Groenwall's lemma for $|X_t - Y_t|$, Y along u from the same noise, and
Minkowski's inequality. Adding $\lambda\,E|v - u|^2$ to a loss therefore keeps the law near that of u.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.policies import flow
from bilevel_rl.control.policies.flow import Field


def wasserstein_bound(
    v: Field, u: Field, noise: Float[Array, "n m"], obs: Float[Array, " o"], lipschitz: Callable | float, steps: int = 100
) -> Float[Array, ""]:
    """The right-hand side above, from samples of the noise.

    Args:
        v, u: the two velocities.
        noise: from which both start.
        obs: the condition of both.
        lipschitz: L, of u: a number, or a function of the time.
        steps: of the integrals.

    Example:
        >>> push = lambda c: lambda a, t, obs: jnp.full_like(a, c)  # two shifts, .5 apart
        >>> float(wasserstein_bound(push(1.0), push(0.5), jnp.zeros((4, 1)), jnp.zeros(0), 0.0))
        0.5
    """
    t = (jnp.arange(steps, dtype=noise.dtype) + 0.5) / steps
    rate = jax.vmap(lipschitz)(t) if callable(lipschitz) else jnp.full_like(t, lipschitz)
    ahead = (jnp.cumsum(rate[::-1])[::-1] - rate / 2) / steps  # of L from each middle of a step to 1
    half = 0.5 / steps

    def gap(start):
        points = flow.path(v, start, obs, steps, "rk4")[:-1]
        middles = jax.vmap(lambda a, t: flow.stepped(lambda a, t: v(a, t, obs), a, t - half, half, "rk4"))(points, t)
        return jnp.sum(jax.vmap(lambda a, t: v(a, t, obs) - u(a, t, obs))(middles, t) ** 2, -1)

    return jnp.mean(jnp.exp(ahead) * jnp.sqrt(jnp.mean(jax.vmap(gap)(noise), 0)))
