"""Solvers with neural followers, one file each (the nested ones and those by differences share one)."""

from bilevel_rl.control.solvers.backward import Backward
from bilevel_rl.control.solvers.coupled_pair import CoupledPair
from bilevel_rl.control.solvers.covariance import Covariance
from bilevel_rl.control.solvers.differences import SPSA, FiniteDifference
from bilevel_rl.control.solvers.lirpg import LIRPG
from bilevel_rl.control.solvers.nested import BCHG, HPGD, Nested
from bilevel_rl.control.solvers.offline import OfflineBC, OfflineIQL
from bilevel_rl.control.solvers.partial_sgd import PartialSGD
from bilevel_rl.control.solvers.penalty_actor_critic import PenaltyActorCritic
from bilevel_rl.control.solvers.single_loop import SingleLoop
from bilevel_rl.control.solvers.tilted_pair import TiltedPair
from bilevel_rl.control.solvers.trajectory import Trajectory

ALL = (
    Covariance, CoupledPair, PenaltyActorCritic, Trajectory, Backward, Nested, PartialSGD, FiniteDifference, SPSA, HPGD,
    BCHG, LIRPG, OfflineIQL, OfflineBC, TiltedPair,
)  # fmt: skip

__all__ = [
    "ALL", "BCHG", "HPGD", "LIRPG", "SPSA", "Backward", "CoupledPair", "Covariance", "FiniteDifference", "Nested",
    "OfflineBC", "OfflineIQL", "PartialSGD", "PenaltyActorCritic", "SingleLoop", "TiltedPair", "Trajectory",
]  # fmt: skip
