r"""The ratio critic: a table of the mean of $c_t$ given $s_t$, learnt backwards in time."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.estimators.estimator import (
    Estimate,
    Estimator,
    Mine,
    Passage,
    centred,
    of_rewards,
    over_mean,
)
from bilevel_rl.finite.model import sampling, small


class RatioCritic(Estimator):
    r"""C [S] $= E[c_t \mid s_t]$: least noise, nothing per dimension of x.

    $$C(s') \mathrel{+}= \beta\,(\text{after} - C(s')), \quad \text{after} = C(s)\,q + (1-q)/\bar w,
    \quad q = \pi^L/\pi(a|s)$$

    with 0 in place of `after` where the chain restarted. The mean of c is 0, since $E\rho = 1$, but by itself C returns to
    it through restarts only, at the rate $1-\gamma$: centred, the target loses the mean over the other chains.
    """

    name: ClassVar[str] = "ratio_critic"

    def init(self, problem, x, chains):
        return jnp.zeros(problem.mdp.n_states)

    def advanced(self, C: Float[Array, " S"], seen: Passage, w, beta) -> tuple[Array, Array, Array]:
        """C after the passage, and c before and after the action."""
        before = small.rows(C, seen.s)
        after = before * jnp.exp(seen.log_q) - jnp.expm1(seen.log_q) / w
        target = jnp.where(seen.restart, 0.0, centred(after, seen.mine) if self.centre else after)
        error = sampling.visit_mean(seen.onward, C.shape[0], target - small.rows(C, seen.onward), seen.mine)
        return small.add_rows(C, seen.onward, beta * error), before, after

    def ratio(self, c: Float[Array, " N"], w, mine: Mine = None) -> Float[Array, " N"]:
        r"""$\rho = 1 - \bar w c$; over its batch mean where C is centred."""
        rho = 1 - w * c
        return over_mean(rho, mine) if self.centre else rho

    def step(self, problem, x, carry, seen, lesson, w, beta):
        C, before, after = self.advanced(carry, seen, w, beta)
        follows = centred(after, seen.mine) if self.centre else after
        weights = of_rewards(problem, before, after, seen.mine)
        return C, Estimate(follows, self.ratio(after, w, seen.mine), weights)
