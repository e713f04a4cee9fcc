"""Baseline: x follows what it does to the leader's outcome directly, as if the follower did not answer."""

from __future__ import annotations

from typing import ClassVar

from bilevel_rl.control.estimators import HyperGradient, Nothing
from bilevel_rl.control.followers import Follower, Usual
from bilevel_rl.control.solvers.single_loop import SingleLoop


class PartialSGD(SingleLoop):
    r"""Descends $\nabla c - E_d[\nabla_x u]$ alone: what a leader does who takes the follower's behaviour as given.

    Args:
        follower: who learns.
        estimator: nothing.

    References:
        The baseline of arXiv 2601.16399.
    """

    follower: Follower = Usual()
    estimator: HyperGradient = Nothing()

    name: ClassVar[str] = "partial_sgd"
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)
