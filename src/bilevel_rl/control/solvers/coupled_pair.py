"""Single loop with two off-policy followers, coupled by common random numbers."""

from __future__ import annotations

from typing import ClassVar

from bilevel_rl.control.estimators import HyperGradient, Pair
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.solvers.single_loop import SingleLoop
from bilevel_rl.schedules import PowerDecay


class CoupledPair(SingleLoop):
    """The paper's pair of followers, off-policy: both see the same random numbers, and what they share cancels before 1/w.

    Args:
        follower: who learns, twice.
        estimator: the second follower; `estimator.common` off gives each its own random numbers.

    References:
        arXiv 2601.16399, with replayed transitions and common random numbers (ours).
    """

    follower: Follower = Usual()
    estimator: HyperGradient = Pair()
    leader: Leader = Leader(zeta=PowerDecay(0.03, 0.5))

    name: ClassVar[str] = "coupled_pair"
