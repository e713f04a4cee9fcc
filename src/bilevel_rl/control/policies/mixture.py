r"""A mixture of K laws: $\pi(a|s) = \sum_k w_k(s)\, N(\mu_k(s), \sigma_k(s))$, through tanh where actions are bounded."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control.policies.gaussian import HALF_LOG_TAU, Gaussian
from bilevel_rl.control.policies.policy import Policy
from bilevel_rl.control.policies.squashed import Squashed


class ExpertMixture(Policy):
    """K normal laws, one of which is drawn first; both ways of two can be kept.

    Args:
        experts: K.

    Example:
        >>> from bilevel_rl.control.environment import Box
        >>> ExpertMixture(Box((-1.0,), (1.0,)), experts=3).outputs  # weights, means, spreads
        9
    """

    experts: int = eqx.field(static=True, default=4)

    @property
    def each(self) -> Gaussian:
        """The law of one expert."""
        return Squashed(self.space) if self.space.bounded else Gaussian(self.space)

    @property
    def outputs(self):
        return self.experts * (1 + self.each.outputs)

    def opened(self, out):
        """Log weights [K], means and log standard deviations [K, m]."""
        logits, rest = out[: self.experts], out[self.experts :].reshape(self.experts, -1)
        mean, log_std = jax.vmap(self.each.parts)(rest)
        return jax.nn.log_softmax(logits), mean, log_std

    def draws(self, out, key):
        """One action of each expert [K, m], differentiable, and its log density under that expert alone [K]."""
        _, mean, log_std = self.opened(out)
        # the first one's numbers are those of a law without experts: with K = 1 they agree
        keys = [key if k == 0 else jax.random.fold_in(key, k) for k in range(self.experts)]
        eps = jnp.stack([jax.random.normal(k, mean.shape[1:], jnp.float32) for k in keys])
        action, more = jax.vmap(self.each.finish)(mean + jnp.exp(log_std) * eps)
        return action, -jnp.sum(0.5 * eps**2 + log_std + HALF_LOG_TAU, 1) + more

    def sample(self, out, key):
        log_w, mean, log_std = self.opened(out)
        k = jax.random.categorical(jax.random.fold_in(key, 2**31), log_w)
        u = mean[k] + jnp.exp(log_std[k]) * jax.random.normal(key, mean.shape[1:], jnp.float32)
        return self.each.finish(u)[0], self._density(log_w, mean, log_std, u)

    def _density(self, log_w, mean, log_std, u):
        eps = (u - mean) * jnp.exp(-log_std)
        each = -jnp.sum(0.5 * eps**2 + log_std + HALF_LOG_TAU, 1)
        return jax.scipy.special.logsumexp(log_w + each) + self.each.finish(u)[1]

    def log_prob(self, out, action):
        return self._density(*self.opened(out), self.each.undo(action))

    def mode(self, out):
        """The middle of the expert that weighs most."""
        log_w, mean, _ = self.opened(out)
        return self.each.finish(mean[jax.lax.argmax(log_w, 0, jnp.int32)])[0]

    def encoded(self, action):
        return self.each.encoded(action)

    def decoded(self, unit):
        """The action that a critic's network sees so."""
        return self.each.decoded(unit)
