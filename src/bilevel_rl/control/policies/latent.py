r"""Actions as coordinates in which the broadest law is N(0, I): what flows and controlled diffusions of a follower move.

$$a = c + h\,\mathrm{erf}(z / \sqrt 2)$$

carries $z \sim N(0, I)$ to the uniform law on a box with centre c and half width h. A law $\propto N(z)\, e^{Q/\tau}$ of
z is then the law $\propto e^{Q/\tau}$ of actions, the one that maximises $E[Q] + \tau\mathcal{H}$. Where a side is open,
a = z.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Box
from bilevel_rl.control.policies import flow

EDGE = 1e-6  # ours: an action this near a bound is taken to be inside


def act(space: Box, z: Float[Array, "*B m"]) -> Float[Array, "*B m"]:
    """Actions of latent points.

    Example:
        >>> act(Box((0.0,), (4.0,)), jnp.zeros(1)).tolist(), act(Box((0.0,), (4.0,)), jnp.array([9.0])).tolist()
        ([2.0], [4.0])
    """
    return flow.decoded(space, squashed(space, z))


def squashed(space: Box, z: Float[Array, "*B m"]) -> Float[Array, "*B m"]:
    """Actions in units of the half width, as critics see them."""
    return jax.lax.erf(z / math.sqrt(2)) if space.bounded else z


def back(space: Box, action: Float[Array, "*B m"]) -> Float[Array, "*B m"]:
    """Latent points of actions."""
    inside = flow.encoded(space, action)
    return math.sqrt(2) * jax.lax.erf_inv(jnp.clip(inside, -1 + EDGE, 1 - EDGE)) if space.bounded else inside


def still(z: Float[Array, " m"], t: Float[Array, ""], obs: Float[Array, " o"]) -> Float[Array, " m"]:
    """The velocity of matching on N(0, I) itself: what a flow of the broadest law does."""
    return (2 * t - 1) / (t**2 + (1 - t) ** 2) * z
