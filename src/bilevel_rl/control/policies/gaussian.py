r"""Vectors $a = \mu + \sigma \varepsilon$ with independent coordinates, anywhere."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from bilevel_rl.control.policies.policy import Policy

LOG_STD = (-5.0, 2.0)  # SAC's authors clip at -20 and 2; -5 keeps densities in 32 bits
REACH = 5.0  # ours: of the means of unbounded actions, whose unit is theirs to choose
HALF_LOG_TAU = 0.9189385332046727  # log(2 pi) / 2


def split(out):
    """Mean and log standard deviation [m] each; the latter inside its bounds."""
    mean, raw = jnp.split(out, 2)
    low, high = LOG_STD
    return mean, low + 0.5 * (high - low) * (jnp.tanh(raw + CENTRE) + 1)


# raw outputs of 0 stand for a standard deviation of 1
CENTRE = math.atanh(-2 * LOG_STD[0] / (LOG_STD[1] - LOG_STD[0]) - 1)


def _bounded(out):
    mean, log_std = split(out)
    return REACH * jnp.tanh(mean / REACH), log_std


class Gaussian(Policy):
    """For actions without bounds; where a side is bounded the environment clips.

    The mean is that of the network through `REACH * tanh(. / REACH)`. Nothing else stops a critic's error far from what was
    tried: larger actions lead to larger states and these to larger errors, and a run in ten ended so.

    Example:
        >>> from bilevel_rl.control.environment import Box
        >>> law = Gaussian(Box.everywhere(1))
        >>> float(law.log_prob(jnp.zeros(2), jnp.zeros(1)))  # -log(2 pi) / 2
        -0.91893...
    """

    @property
    def outputs(self):
        return 2 * self.space.size

    def parts(self, out):
        """Mean and log standard deviation [m] each, of the normal law that is drawn from."""
        return _bounded(out)

    def finish(self, u):
        """What is done with a draw u of it, and what that adds to the log density."""
        return u, jnp.zeros((), jnp.float32)

    def undo(self, action):
        """The draw that led to an action."""
        return action

    def sample(self, out, key):
        mean, log_std = self.parts(out)
        eps = jax.random.normal(key, mean.shape, jnp.float32)
        action, more = self.finish(mean + jnp.exp(log_std) * eps)
        return action, -jnp.sum(0.5 * eps**2 + log_std + HALF_LOG_TAU) + more

    def log_prob(self, out, action):
        mean, log_std = self.parts(out)
        u = self.undo(action)
        eps = (u - mean) * jnp.exp(-log_std)
        return -jnp.sum(0.5 * eps**2 + log_std + HALF_LOG_TAU) + self.finish(u)[1]

    def mode(self, out):
        return self.finish(self.parts(out)[0])[0]

    def encoded(self, action):
        return action

    def decoded(self, unit):
        """The action that a critic's network sees so."""
        return unit
