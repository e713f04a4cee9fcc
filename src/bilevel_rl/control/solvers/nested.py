"""The nested loop: the follower learns for many iterations at each x; then x moves."""

from __future__ import annotations

from typing import ClassVar

from bilevel_rl.control.estimators import Covariance, HyperGradient, Reinforce
from bilevel_rl.control.estimators import Trajectory as TrajectoryEstimator
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.solvers.single_loop import SingleLoop
from bilevel_rl.schedules import PowerDecay

# ours: a move every so many iterations, and steps as large as the answer allows
SLOW = Leader(zeta=PowerDecay(0.5, 0.5), every=200, hold=500.0, block=200)


class Nested(SingleLoop):
    """Holds x while the follower learns its answer, then moves it by a covariance hyper-gradient: the usual double loop.

    Args:
        follower: who learns; it goes on from what it knew at the last x.
        estimator: of the hyper-gradient, which learns beside it.
        leader: `leader.every` is the length of the inner loop.
    """

    follower: Follower = Usual()
    estimator: HyperGradient = Covariance()
    leader: Leader = SLOW

    name: ClassVar[str] = "nested"


class BCHG(SingleLoop):
    """BC-HG in neural form: at a fixed x the follower learns; a critic's advantages weigh later derivatives.

    Args:
        follower: who learns.
        estimator: the leader's critic and the traces, gathered over the whole inner loop.
        leader: `leader.every` is the length of the inner loop.

    References:
        arXiv 2603.14867. Networks for its tables, and chains cut at random for its trajectories of fixed length, are ours.
    """

    follower: Follower = Usual()
    estimator: HyperGradient = TrajectoryEstimator()
    leader: Leader = SLOW

    name: ClassVar[str] = "bc_hg"
    references: ClassVar[tuple[str, ...]] = ("bchg2026",)


class HPGD(SingleLoop):
    """HPGD in neural form: at a fixed x the follower learns; the leader's returns weigh the scores of its answer.

    Args:
        follower: who learns.
        estimator: a critic of the reward's derivatives and a window of returns, gathered over the whole inner loop.
        leader: `leader.every` is the length of the inner loop.

    References:
        arXiv 2406.01575. Networks for its means over visits, and chains cut at random, are ours.
    """

    follower: Follower = Usual()
    estimator: HyperGradient = Reinforce()
    leader: Leader = SLOW

    name: ClassVar[str] = "hpgd"
    references: ClassVar[tuple[str, ...]] = ("thoma2024hpgd",)
