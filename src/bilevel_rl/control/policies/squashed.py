r"""Vectors in a box: $a = c + h \tanh(\mu + \sigma \varepsilon)$, as SAC draws them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.control.policies.gaussian import Gaussian, split

EDGE = 1e-6  # ours: a given action this near a bound is taken to be inside


class Squashed(Gaussian):
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
    def _box(self):
        low, high = np.asarray(self.space.low, np.float32), np.asarray(self.space.high, np.float32)
        return (low + high) / 2, (high - low) / 2

    def _scaled(self, u):
        centre, half = self._box
        return centre + half * jnp.tanh(u)

    def parts(self, out):
        return split(out)

    def finish(self, u):
        return self._scaled(u), -_stretch(u)

    def undo(self, action):
        return jnp.arctanh(jnp.clip(self.encoded(action), -1 + EDGE, 1 - EDGE))

    def encoded(self, action):
        centre, half = self._box
        return (action - centre) / half

    def decoded(self, unit):
        centre, half = self._box
        return centre + half * unit


def _stretch(u):
    """Sum of log d tanh(u)/du, without loss where tanh is 1 to all digits."""
    return jnp.sum(2 * (jnp.log(2.0).astype(jnp.float32) - u - jax.nn.softplus(-2 * u)))
