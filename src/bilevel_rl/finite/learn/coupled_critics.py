r"""Two followers as one critic and a difference: $Q^L = Q + \bar w D$, learnt from the same transitions.

$$\pi = \mathrm{softmax}(Q/\tau), \qquad \pi^L = \mathrm{softmax}((Q + \bar w D)/\tau)$$

**Levels.** With long horizons the common level of a table moves at the rate $1-\gamma$ only, pairs that are rarely visited
lag behind it, and the lag looks like a difference between actions. So the level is taken out: the rewards lose a running
mean m of the temporal-difference errors, and the value is the table plus $m/(1-\gamma)$. Any m has the same fixed point
up to that constant; policies and differences of values do not see it.

Where episodes end for good nothing is taken out. An end is worth 0, so the level is known; and a table whose level moves by
$\epsilon$ at a step is off by $\epsilon/(1-\gamma)$ wherever an end is near, which is seen at once there and elsewhere
later. With a share p of transitions into ends a step $\beta$ along the mean error overshoots when
$\beta p > 2(1-\gamma)$: tables grew to 1e40 on four rooms; divided by what it overshoots, its noise is still larger than
what actions differ by.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite.model import planning, small

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


def less(reward: Float[Array, "*N"] | float, level: Float[Array, ""] | None) -> Float[Array, "*N"] | float:
    """A reward less the level, where there is one."""
    return reward if level is None else reward - level
