r"""Estimators of the coupled penalty: what a chain of $\pi$ says about $\frac1w(\nabla J(\pi) - \nabla J(\pi^L))$.

One file each: an object with `init`, which makes what it carries, and `step`, which returns it updated with an `Estimate`.
"""

from bilevel_rl.finite.estimators.doubly_robust import DoublyRobust
from bilevel_rl.finite.estimators.estimator import Estimate, Estimator, Lesson, Passage
from bilevel_rl.finite.estimators.gradient_critic import GradientCritic
from bilevel_rl.finite.estimators.likelihood_ratio import LikelihoodRatio
from bilevel_rl.finite.estimators.ratio_critic import RatioCritic

ALL: tuple[type[Estimator], ...] = (RatioCritic, LikelihoodRatio, GradientCritic, DoublyRobust)
NAMED = {kind.name: kind for kind in ALL}

__all__ = [
    "ALL", "NAMED", "DoublyRobust", "Estimate", "Estimator", "GradientCritic", "Lesson", "LikelihoodRatio", "Passage",
    "RatioCritic",
]  # fmt: skip
