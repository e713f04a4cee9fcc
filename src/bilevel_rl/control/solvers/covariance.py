"""The recommended solver: one follower, the hyper-gradient as a covariance, x gated on the follower's lag."""

from __future__ import annotations

from typing import ClassVar

from bilevel_rl.control.estimators import Covariance as CovarianceEstimator
from bilevel_rl.control.estimators import HyperGradient
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.solvers.single_loop import SingleLoop


class Covariance(SingleLoop):
    """Single loop with a covariance hyper-gradient: no second follower, any rewards, up to some thirty upper variables.

    Args:
        follower: who learns.
        estimator: a critic with one head for the leader's utility and one for each upper variable.

    References:
        The covariance form: arXiv 2603.14867; neural, off-policy and gated it is ours.
    """

    follower: Follower = Usual()
    estimator: HyperGradient = CovarianceEstimator()

    name: ClassVar[str] = "covariance"
