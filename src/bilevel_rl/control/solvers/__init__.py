"""Solvers with neural followers, one file each."""

from bilevel_rl.control.solvers.covariance import Covariance
from bilevel_rl.control.solvers.single_loop import SingleLoop

ALL: tuple[type, ...] = (Covariance,)
__all__ = ["ALL", "Covariance", "SingleLoop"]
