r"""A critic and an actor that are told a descriptor, and how the actor becomes an elite.

$$r' = S(d, d')\,r, \qquad S(d, d') = e^{-|d - d'|/L}; \qquad \pi_d(s) = \pi(s|d)\ \text{by}\ b \leftarrow b + W_d^\top d$$
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets


def similarity(descriptor: Float[Array, "*B 2"], wanted: Float[Array, "*B 2"], reach: float) -> Float[Array, "*B"]:
    """S: 1 for equal descriptors, less the further they are apart.

    Args:
        reach: L, in units of descriptors.

    Example:
        >>> float(similarity(jnp.zeros(2), jnp.zeros(2), 0.1)) > 0.99
        True
    """
    return jnp.exp(-jnp.sqrt(jnp.sum((descriptor - wanted) ** 2, -1) + 1e-12) / reach)


def inject(actor: nets.MLP, wanted: Float[Array, " 2"]) -> nets.MLP:
    """The policy of states alone that does what the conditioned actor does for one descriptor: no number is lost.

    Args:
        actor: of states and descriptors, [o + 2] -> [m].
        wanted: what it is told.
    """
    W, b = actor.weights[0], actor.biases[0]
    o = W.shape[0] - wanted.shape[0]
    return nets.MLP((W[:o], *actor.weights[1:]), (b + wanted @ W[o:], *actor.biases[1:]))


def squashed(net: nets.MLP, inputs: Float[Array, "*B i"]) -> Float[Array, "*B m"]:
    """Actions in units of their box."""
    return jnp.tanh(net(inputs))


def told(states: Float[Array, "*B o"], wanted: Float[Array, "*B 2"]) -> Float[Array, "*B i"]:
    """States with the descriptor that is wanted."""
    return jnp.concatenate([states, wanted], -1)


def critics(size: int, actions: int, width: int, key: Array) -> nets.MLP:
    """Two critics of state, action and descriptor, stacked."""
    return jax.vmap(lambda k: nets.MLP.make((size + actions + 2, width, width, 1), k))(jax.random.split(key, 2))


def values(Q: nets.MLP, states, actions, wanted) -> Float[Array, "2 B"]:
    """What both say."""
    return jax.vmap(lambda q: q(jnp.concatenate([states, actions, wanted], -1))[..., 0])(Q)
