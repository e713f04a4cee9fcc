r"""The ratio critic and the gradient critic joined, each the other's control variate."""

from __future__ import annotations

from typing import ClassVar

from bilevel_rl.finite.estimators.estimator import Estimate, Estimator, centred, mean
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
        difference = gradients.difference(seen, self.ratios.ratio(before, w, seen.mine), w)
        gradients, error = gradients.taught(problem, x, lesson, beta, difference)
        follows = centred(after, seen.mine) if self.centre else after
        correction = mean(follows[:, None] * error[: after.shape[0]], seen.mine)
        rho = self.ratios.ratio(after, w, seen.mine)
        return (C, gradients), Estimate(follows, rho, None, (difference, correction))
