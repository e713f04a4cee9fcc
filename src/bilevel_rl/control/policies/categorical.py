r"""Choices with $\pi(a) \propto \exp(\text{out}_a)$."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bilevel_rl.control.policies.policy import Policy


class Categorical(Policy):
    """A softmax over n actions.

    Example:
        >>> from bilevel_rl.control.environment import Discrete
        >>> float(Categorical(Discrete(4)).log_prob(jnp.zeros(4), jnp.array(0)))  # log(1/4)
        -1.386294...
    """

    @property
    def outputs(self):
        return self.space.n

    def sample(self, out, key):
        action = jax.random.categorical(key, out).astype(jnp.int32)
        return action, self.log_prob(out, action)

    def log_prob(self, out, action):
        return jax.nn.log_softmax(out)[action]

    def mode(self, out):
        return jnp.argmax(out).astype(jnp.int32)

    def encoded(self, action):
        return jax.nn.one_hot(action, self.space.n, dtype=jnp.float32)
