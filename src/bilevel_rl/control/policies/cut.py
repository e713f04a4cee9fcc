r"""Vectors in a box: $a = c + h\, \mathrm{clip}(\mu + \sigma \varepsilon, -1, 1)$, a Gaussian that is cut at the ends."""

from __future__ import annotations

import jax.numpy as jnp

from bilevel_rl.control.policies.gaussian import split
from bilevel_rl.control.policies.squashed import Squashed


class Cut(Squashed):
    r"""A Gaussian in units of a box with centre c and half width h, its means inside the box, its draws cut at the ends.

    Densities are the Gaussian's in units of the half width, before the cut. Inside the box the law is a Gaussian itself,
    without skewness: where Q is quadratic in the action, the soft optimum is of this form; a Gaussian through tanh is not.

    Example:
        >>> from bilevel_rl.control.environment import Box
        >>> law = Cut(Box((-2.0,), (2.0,)))
        >>> law.mode(jnp.array([100.0, 0.0])).tolist()
        [2.0]
        >>> round(float(law.log_prob(jnp.zeros(2), jnp.zeros(1))), 4)  # -log(2 pi) / 2
        -0.9189
    """

    def parts(self, out):
        mean, log_std = split(out)
        return jnp.tanh(mean), log_std

    def finish(self, u):
        centre, half = self._box
        return centre + half * jnp.clip(u, -1.0, 1.0), jnp.zeros((), jnp.float32)

    def undo(self, action):
        return self.encoded(action)
