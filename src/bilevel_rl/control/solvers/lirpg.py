"""Baseline: x follows what it does to the follower's next step alone."""

from __future__ import annotations

from typing import ClassVar

from bilevel_rl.control.estimators import HyperGradient, OneStep
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.solvers.single_loop import SingleLoop
from bilevel_rl.schedules import PowerDecay


class LIRPG(SingleLoop):
    """Learning intrinsic rewards for policy gradients: the leader's outcome after one more step of the follower.

    Args:
        follower: who learns.
        estimator: the meta-gradient of one step, of length 1.
        leader: how x moves; not gated.

    References:
        Zheng, Oh, Singh 2018, arXiv 1804.06459.
    """

    follower: Follower = Usual()
    estimator: HyperGradient = OneStep()
    leader: Leader = Leader(zeta=PowerDecay(0.4, 0.5))

    name: ClassVar[str] = "lirpg"
