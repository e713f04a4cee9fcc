"""Single loop with a pair of followers of which the second is the first one's law, tilted."""

from __future__ import annotations

from typing import ClassVar

from bilevel_rl.control.estimators import HyperGradient, TiltedActions
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.solvers.single_loop import SingleLoop


class TiltedPair(SingleLoop):
    """The paper's pair in closed form: as many transitions as one follower takes, unequal discounts, any follower.

    Args:
        follower: who learns.
        estimator: a critic with one head for the leader's utility and one for each upper variable.

    References:
        arXiv 2601.16399, at the closed form of its second follower (ours).
    """

    follower: Follower = Usual()
    estimator: HyperGradient = TiltedActions()

    name: ClassVar[str] = "tilted_pair"
