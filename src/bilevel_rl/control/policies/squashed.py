r"""Vectors in a box: $a = c + h \tanh(\mu + \sigma \varepsilon)$, as SAC draws them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control.policies.gaussian import HALF_LOG_TAU, split
from bilevel_rl.control.policies.policy import Policy

EDGE = 1e-6  # ours: a given action this near a bound is taken to be inside


class Squashed(Policy):
    r"""A Gaussian through tanh, scaled to a box with centre c and half width h.

    Densities are those of the action in units of the half width, in [-1, 1]: entropies do not depend on the box.

    References:
        Haarnoja et al. 2018, appendix C: $\log \pi(a) = \log N(u) - \sum_i \log(1 - \tanh^2 u_i)$, with the last term as
        $2(\log 2 - u - \mathrm{softplus}(-2u))$.

    Example:
        >>> from bilevel_rl.control.environment import Box
        >>> Squashed(Box((-2.0,), (2.0,))).mode(jnp.array([100.0, 0.0])).tolist()
        [2.0]
    """

    @property
    def outputs(self):
        return 2 * self.space.size

    @property
    def _box(self):
        low, high = np.asarray(self.space.low, np.float32), np.asarray(self.space.high, np.float32)
        return (low + high) / 2, (high - low) / 2

    def _scaled(self, u):
        centre, half = self._box
        return centre + half * jnp.tanh(u)

    def sample(self, out, key):
        mean, log_std = split(out)
        eps = jax.random.normal(key, mean.shape, jnp.float32)
        u = mean + jnp.exp(log_std) * eps
        return self._scaled(u), -jnp.sum(0.5 * eps**2 + log_std + HALF_LOG_TAU) - _stretch(u)

    def log_prob(self, out, action):
        mean, log_std = split(out)
        u = jnp.arctanh(jnp.clip(self.encoded(action), -1 + EDGE, 1 - EDGE))
        eps = (u - mean) * jnp.exp(-log_std)
        return -jnp.sum(0.5 * eps**2 + log_std + HALF_LOG_TAU) - _stretch(u)

    def mode(self, out):
        return self._scaled(split(out)[0])

    def encoded(self, action):
        centre, half = self._box
        return (action - centre) / half


def _stretch(u):
    """Sum of log d tanh(u)/du, without loss where tanh is 1 to all digits."""
    return jnp.sum(2 * (jnp.log(2.0).astype(jnp.float32) - u - jax.nn.softplus(-2 * u)))
