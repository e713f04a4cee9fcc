"""Estimators of the hyper-gradient, one file each: strategy objects that learn beside the follower."""

from bilevel_rl.control.estimators.backward import Backward
from bilevel_rl.control.estimators.covariance import Covariance
from bilevel_rl.control.estimators.estimator import Direction, Here, HyperGradient
from bilevel_rl.control.estimators.nothing import Nothing
from bilevel_rl.control.estimators.one_step import OneStep
from bilevel_rl.control.estimators.pair import Pair
from bilevel_rl.control.estimators.reinforce import Reinforce
from bilevel_rl.control.estimators.tilted import TiltedActions
from bilevel_rl.control.estimators.trajectory import Trajectory

ALL: tuple[type[HyperGradient], ...] = (Covariance, Trajectory, Backward, Reinforce, Pair, OneStep, TiltedActions, Nothing)
__all__ = [
    "ALL", "Backward", "Covariance", "Direction", "Here", "HyperGradient", "Nothing", "OneStep", "Pair", "Reinforce",
    "TiltedActions", "Trajectory",
]  # fmt: skip
