"""Solvers, one file each.

Every solver takes every upper objective and kernels that depend on x, unless its `requires` says otherwise: `solve` then
refuses before any work starts and names the solvers that can.
"""

from bilevel_rl.finite.solvers.amd import AMD
from bilevel_rl.finite.solvers.boltzmann_covariance import BoltzmannCovariance
from bilevel_rl.finite.solvers.certainty_equivalence import CertaintyEquivalence
from bilevel_rl.finite.solvers.coupled_penalty import CoupledPenalty
from bilevel_rl.finite.solvers.exact_descent import ExactDescent
from bilevel_rl.finite.solvers.exact_penalty import ExactPenalty
from bilevel_rl.finite.solvers.exact_quasi_newton import ExactQuasiNewton
from bilevel_rl.finite.solvers.f2sa import F2SA
from bilevel_rl.finite.solvers.finite_difference import FiniteDifference
from bilevel_rl.finite.solvers.hpgd import HPGD
from bilevel_rl.finite.solvers.implicit_cg import ImplicitCG
from bilevel_rl.finite.solvers.nested_penalty import NestedPenalty
from bilevel_rl.finite.solvers.partial_sgd import PartialSGD
from bilevel_rl.finite.solvers.pbrl_bellman import PBRLBellman
from bilevel_rl.finite.solvers.pbrl_value import PBRLValue
from bilevel_rl.finite.solvers.penalty_actor_critic import PenaltyActorCritic
from bilevel_rl.finite.solvers.policy_alignment import PolicyAlignment
from bilevel_rl.finite.solvers.sobirl import SoBiRL
from bilevel_rl.finite.solvers.zero_order import ZeroOrder

ALL = (
    CoupledPenalty, PenaltyActorCritic, NestedPenalty, PartialSGD, FiniteDifference, ExactPenalty, ExactDescent,
    ExactQuasiNewton, CertaintyEquivalence, HPGD, BoltzmannCovariance, SoBiRL, PBRLValue, PBRLBellman, PolicyAlignment,
    AMD, ImplicitCG, F2SA, ZeroOrder,
)  # fmt: skip

__all__ = [
    "ALL", "AMD", "F2SA", "HPGD", "BoltzmannCovariance", "CertaintyEquivalence", "CoupledPenalty", "ExactDescent",
    "ExactPenalty", "ExactQuasiNewton", "FiniteDifference", "ImplicitCG", "NestedPenalty", "PBRLBellman", "PBRLValue",
    "PartialSGD", "PenaltyActorCritic", "PolicyAlignment", "SoBiRL", "ZeroOrder",
]  # fmt: skip
