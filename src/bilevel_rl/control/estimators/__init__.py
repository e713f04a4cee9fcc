"""Estimators of the hyper-gradient, one file each: strategy objects that learn beside the follower."""

from bilevel_rl.control.estimators.covariance import Covariance
from bilevel_rl.control.estimators.estimator import Direction, Here, HyperGradient

ALL: tuple[type[HyperGradient], ...] = (Covariance,)
__all__ = ["ALL", "Covariance", "Direction", "Here", "HyperGradient"]
