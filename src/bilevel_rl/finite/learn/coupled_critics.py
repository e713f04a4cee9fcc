r"""Two followers as one critic and a difference: $Q^L = Q + \bar w D$, learnt from the same transitions.

$$\pi = \mathrm{softmax}(Q/\tau), \qquad \pi^L = \mathrm{softmax}((Q + \bar w D)/\tau)$$

**Levels.** With long horizons the common level of a table moves at the rate $1-\gamma$ only, pairs that are rarely visited
lag behind it, and the lag looks like a difference between actions. So the level is taken out: the rewards lose a running
mean m of the temporal-difference errors, and the value is the table plus $m/(1-\gamma)$. Any m has the same fixed point
up to that constant; policies and differences of values do not see it.

Where episodes end for good the level is tied down, an end being worth 0, or $-m/(1-\gamma)$ in a centred table. Levels then
only help tables to get near, and rest soon: near an end each wrong step of m is felt $1/(1-\gamma)$ times (`level_error`).
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite.model import planning, small
from bilevel_rl.finite.model.mdp import FiniteMDP

LEAST_LOG = -600.0  # ours: logs of probabilities above it are far from where double precision underflows


class Pair(NamedTuple):
    r"""Both followers in some states.

    Attributes:
        Q: [..., A] the follower's table.
        advantage: [..., A] what is added to it, $(Q^L - Q)/\bar w$.
        w: $\bar w$.
        tau: temperature.
    """

    Q: Float[Array, "*N A"]
    advantage: Float[Array, "*N A"]
    w: Float[Array, ""]
    tau: Float[Array, ""]

    def at(self, s: Int[Array, " N"]) -> Pair:
        """In the states s of a table."""
        return Pair(small.rows(self.Q, s), small.rows(self.advantage, s), self.w, self.tau)

    @property
    def pi(self) -> Float[Array, "*N A"]:
        r"""$\pi$."""
        return planning.soft_policy(self.Q, self.tau)

    @property
    def pi_l(self) -> Float[Array, "*N A"]:
        r"""$\pi^L$."""
        return planning.soft_policy(self.Q + self.w * self.advantage, self.tau)

    def values(self, b: Float[Array, "*N A"] | None = None) -> tuple[Float[Array, "*N"], Float[Array, "*N"]]:
        r"""$V$ and $\Delta = (V^L - V)/\bar w$, the latter without cancellation.

        Args:
            b: the part of the advantage that acts in its own state only; $E_{\pi^L} b$ is then no part of $\Delta$.
        """
        V = planning.soft_value(self.Q, self.tau)
        added = self.w * self.advantage / self.tau
        log_mean = small.log_sum_exp(added, b=self.pi)
        # at a low temperature the answer's likeliest action may be one whose probability under pi is too small for a number
        deep = small.log_sum_exp(self.Q / self.tau + added) - V / self.tau
        shallow = log_mean - small.largest(added) > LEAST_LOG
        delta = self.tau / self.w * jnp.where(shallow, log_mean, deep)
        return V, delta if b is None else delta - jnp.sum(self.pi_l * b, -1)


def valued(
    mdp: FiniteMDP, values: Float[Array, " N"], s: Int[Array, " N"] | None, level: Float[Array, ""] | None
) -> Float[Array, " N"]:
    r"""Values of the states s (all, when None) as a table with a level holds them: an end, worth 0, at $-m/(1-\gamma)$."""
    if mdp.ends is None or level is None:
        return mdp.ongoing(values, s)
    return jnp.where(mdp.ends if s is None else mdp.ends[s], -level / (1 - mdp.discount), values)


def level_error(
    mdp: FiniteMDP, s: Int[Array, " B"], s_next: Int[Array, " B"], errors: Float[Array, "B ..."]
) -> Float[Array, "..."]:
    r"""By how much a level is off: the mean of the errors, and where episodes end less than that.

    Where nothing ends a level off by $\epsilon$ makes every error $\epsilon$. A transition to an end makes
    $\epsilon/(1-\gamma)$ of it, so with a share p of them the mean is about $\epsilon\,(1-\gamma+p)/(1-\gamma)$: a step
    along it would overshoot p times the horizon, and grow without bound. What is seen at ends themselves tells nothing.

    Args:
        errors: temporal-difference errors of each transition.
    """
    if mdp.ends is None:
        return jnp.mean(errors, axis=0)
    going = ~mdp.ends[s]
    n = jnp.maximum(jnp.sum(going), 1)
    ending = jnp.sum(going & mdp.ends[s_next]) / n
    counted = jnp.where(going.reshape(going.shape + (1,) * (errors.ndim - 1)), errors, 0.0)
    return jnp.sum(counted, axis=0) / n * (1 - mdp.discount) / (1 - mdp.discount + ending)


def less(reward: Float[Array, "*N"] | float, level: Float[Array, ""] | None) -> Float[Array, "*N"] | float:
    """A reward less the level, where there is one."""
    return reward if level is None else reward - level
