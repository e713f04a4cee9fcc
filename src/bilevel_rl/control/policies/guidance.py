r"""Conditional control: a denoising chain that is pushed towards what is asked of its end, and pays for every push.

A chain $z_{k+1} = \mu_k(z_k) + \sigma_k \xi$ draws from a given law p. Pushed by controls c in units of its own noise,

$$z_{k+1} = \mu_k(z_k) + \sigma_k\,(c_k(z_k) + \xi), \qquad
\max_c\; E\Big[\gamma\, \log p(y|z_K) - \tfrac12 \sum_k |c_k|^2\Big],$$

whose second part is the Kullback-Leibler divergence of the pushed path from the chain's own (Girsanov; in discrete steps
it is exact). Where nothing of the first point is left in the last, the optimum draws from $p(z)\, p(y|z)^\gamma / Z$:
guidance of strength $\gamma$ as control, learnt through the chain by the derivative of the likelihood.

References:
    Adding Conditional Control to Diffusion Models with Reinforcement Learning. The objective SEEN (abstract); the divergence
    of two paths INFERRED. In the spirit of it: a chain of few coordinates, learnt by derivatives alone.
"""

# no `from __future__ import annotations`: Equinox reads `AbstractVar` only where annotations are evaluated
import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.policies import diffusion, flow
from bilevel_rl.control.policies.flow import Field


class Pushed(NamedTuple):
    """A pushed path.

    Attributes:
        end: [m] where it ended.
        cost: half the sum of squared controls: its share of the divergence, in nats.
        way: [K + 1, m] all of its points.
    """

    end: Float[Array, " m"]
    cost: Float[Array, ""]
    way: Float[Array, "k m"]


class Chain(eqx.Module):
    """A Markov chain of Gaussian steps, from N(0, I) to a law."""

    steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def kernel(self, z: Float[Array, " m"], k: Array, obs: Float[Array, " o"]) -> tuple[Float[Array, " m"], Array]:
        """Mean [m] and standard deviation [] of the step from time k/K."""

    def pushed(self, control: Field, start: Float[Array, " m"], obs: Float[Array, " o"], key: Array) -> Pushed:
        """A path under a control c(z, t, s); differentiable in what the control is made of.

        Args:
            control: `zero` for the chain itself.
            start: the first point, of N(0, I).
            obs: the condition.
            key: of the noise.
        """
        noise = jax.random.normal(key, (self.steps, *start.shape), start.dtype)

        def step(z, drawn):
            k, xi = drawn
            mean, std = self.kernel(z, k, obs)
            c = control(z, k.astype(z.dtype) / self.steps, obs)
            c = jnp.where(std > 0, c, jnp.zeros_like(c))  # a step without noise can't be pushed at a finite price
            z = mean + std * (c + xi)
            return z, (z, 0.5 * jnp.sum(c**2))

        end, (way, costs) = jax.lax.scan(step, start, (jnp.arange(self.steps), noise))
        return Pushed(end, jnp.sum(costs), jnp.concatenate([start[None], way]))


class Broad(Chain):
    r"""The chain that stays at N(0, I) at every step: $z' = \kappa_k z + \sqrt{1 - \kappa_k^2}\,\xi$.

    With $\kappa_k = \alpha_k / \alpha_{k+1}$ of the path at the times $1 - (1 - k/K)^2$: what the last step scatters is the
    finest that pushes can tell apart, .1 at K = 6, so steps are short near the end.

    Args:
        steps: K.
        path: whose rates are taken.
    """

    steps: int = eqx.field(static=True, default=8)
    path: diffusion.VariancePreserving = diffusion.VariancePreserving()

    def __check_init__(self):
        flow.check_steps("guidance.Broad", self.steps)

    def alpha(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """How much of a point at time t is left at the end."""
        return self.path.alpha(1 - (1 - t) ** 2)

    def kernel(self, z, k, obs):
        kappa = self.alpha(k.astype(z.dtype) / self.steps) / self.alpha((k + 1).astype(z.dtype) / self.steps)
        return kappa * z, jnp.sqrt(1 - kappa**2)


class Denoising(Chain):
    """The ancestral chain of a denoising model.

    Args:
        noise: (x [m], t [], obs [o]) -> the mean noise in x.
        steps: K.
        path: how actions are noised.
    """

    noise: Callable
    steps: int = eqx.field(static=True, default=20)
    path: diffusion.Path = diffusion.VariancePreserving()

    def __check_init__(self):
        flow.check_steps("guidance.Denoising", self.steps)

    def kernel(self, z, k, obs):
        t, ahead = k.astype(z.dtype) / self.steps, (k + 1).astype(z.dtype) / self.steps
        s = diffusion.ancestral(self.path, t, ahead)
        return diffusion.denoised(self.path, self.noise(z, t, obs), z, t, ahead, s, jnp.zeros_like(z)), s


def zero(z: Float[Array, " m"], t: Float[Array, ""], obs: Float[Array, " o"]) -> Float[Array, " m"]:
    """No push."""
    return jnp.zeros_like(z)


def shortfall(
    chain: Chain, control: Field, log_likelihood: Callable, strength: Array | float, start: Float[Array, " m"],
    obs: Float[Array, " o"], key: Array,
) -> Float[Array, ""]:  # fmt: skip
    """What a control loses on one path: its cost less gamma times the log-likelihood of its end. To be minimised.

    Args:
        log_likelihood: (end [m], obs [o]) -> log p(y | end), differentiable.
        strength: gamma.
        start: the first point.

    Example:
        >>> unlikely = lambda end, obs: jnp.array(-1.0)
        >>> float(shortfall(Broad(), zero, unlikely, 0.5, jnp.zeros(1), jnp.zeros(0), jax.random.key(0)))
        0.5
    """
    path = chain.pushed(control, start, obs, key)
    return path.cost - strength * log_likelihood(path.end, obs)
