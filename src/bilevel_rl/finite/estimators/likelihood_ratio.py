r"""The product itself: $\rho_t = \prod \pi^L/\pi$ over the actions since the chain's last restart."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.estimators.estimator import Estimate, Estimator, Passage, centred, of_rewards


class LikelihoodRatio(Estimator):
    """Unbiased given the followers' difference, up to the clip; noisier than a critic. Carries log rho [N]."""

    name: ClassVar[str] = "likelihood_ratio"

    def init(self, problem, x, chains):
        return jnp.zeros(chains)

    def advanced(self, carry: Float[Array, " N"], seen: Passage, w) -> tuple[Array, Array, Array]:
        """log rho from here on, and c before and after the action."""
        log_after = jnp.clip(carry + seen.log_q, -self.clip, self.clip)
        return jnp.where(seen.restart, 0.0, log_after), -jnp.expm1(carry) / w, -jnp.expm1(log_after) / w

    def step(self, problem, x, carry, seen, lesson, w, beta):
        carry, before, after = self.advanced(carry, seen, w)
        rho = 1 - w * after
        follows = centred(after, seen.mine) if self.centre else after
        return carry, Estimate(follows, rho, of_rewards(problem, before, after, seen.mine))
