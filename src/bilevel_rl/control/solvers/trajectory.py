"""Single loop, the hyper-gradient along trajectories."""

from __future__ import annotations

from typing import ClassVar

from bilevel_rl.control.estimators import HyperGradient
from bilevel_rl.control.estimators import Trajectory as TrajectoryEstimator
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.solvers.single_loop import SingleLoop


class Trajectory(SingleLoop):
    """Credits every reward's derivative to the advantages before it: for many upper variables, where noise averages out.

    Args:
        follower: who learns.
        estimator: a critic of the leader's utility, and a trace along each chain.

    References:
        The sums of HPGD, arXiv 2406.01575, with a critic's advantage; in one loop it is ours.
    """

    follower: Follower = Usual()
    estimator: HyperGradient = TrajectoryEstimator()

    name: ClassVar[str] = "trajectory"
