"""Single loop, the hyper-gradient with a value learnt backwards."""

from __future__ import annotations

from typing import ClassVar

from bilevel_rl.control.estimators import Backward as BackwardEstimator
from bilevel_rl.control.estimators import HyperGradient
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.solvers.single_loop import SingleLoop


class Backward(SingleLoop):
    """Learns what led to a state as a value of the state: for many upper variables, with less noise than trajectories.

    Args:
        follower: who learns.
        estimator: a critic of the leader's utility, and a value that looks back.

    References:
        Ours.
    """

    follower: Follower = Usual()
    estimator: HyperGradient = BackwardEstimator()

    name: ClassVar[str] = "backward"
