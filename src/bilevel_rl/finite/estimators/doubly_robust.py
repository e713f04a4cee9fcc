r"""The ratio critic and the gradient critic joined, each the other's control variate."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp

from bilevel_rl.finite.estimators.estimator import Estimate, Estimator, centred
from bilevel_rl.finite.estimators.gradient_critic import Gradients
from bilevel_rl.finite.estimators.ratio_critic import RatioCritic


class DoublyRobust(Estimator):
    r"""The gradient critic's estimate, corrected by its own errors along the chain: the bias is a product of two errors.

    $$E_{d}\big[\rho \textstyle\sum_a \frac{\pi - \pi^L}{\bar w} G + c_{t+1}\, \delta_G\big], \qquad
    \delta_G = \nabla r + \gamma E_\pi G(s', \cdot) - G(s, a)$$

    Carries C and the table G.
    """

    name: ClassVar[str] = "doubly_robust"

    @property
    def ratios(self) -> RatioCritic:
        """How c is known."""
        return RatioCritic(self.clip, self.centre)

    def init(self, problem, x, chains):
        return self.ratios.init(problem, x, chains), Gradients.zeros(problem, x, self.centre)

    def step(self, problem, x, carry, seen, lesson, w, beta):
        C, gradients = carry
        C, before, after = self.ratios.advanced(C, seen, w, beta)
        difference = gradients.difference(seen, self.ratios.ratio(before, w), w)
        gradients, error = gradients.taught(problem, x, lesson, beta)
        follows = centred(after) if self.centre else after
        correction = jnp.mean(follows[:, None] * error[: after.shape[0]], axis=0)
        return (C, gradients), Estimate(follows, self.ratios.ratio(after, w), None, (difference, correction))
