"""Solvers, one file each.

`check` refuses a problem that a solver can't handle and names those that can. Every solver but `coupled_penalty` takes
every upper objective and kernels that depend on x.
"""

from bilevel_rl.finite.solvers.coupled_penalty import CoupledPenalty
from bilevel_rl.finite.solvers.exact_descent import ExactDescent
from bilevel_rl.finite.solvers.exact_penalty import ExactPenalty
from bilevel_rl.finite.solvers.finite_difference import FiniteDifference
from bilevel_rl.finite.solvers.nested_penalty import NestedPenalty
from bilevel_rl.finite.solvers.partial_sgd import PartialSGD
from bilevel_rl.finite.solvers.penalty_actor_critic import PenaltyActorCritic

ALL = (CoupledPenalty, PenaltyActorCritic, NestedPenalty, PartialSGD, FiniteDifference, ExactPenalty, ExactDescent)

__all__ = [
    "ALL", "CoupledPenalty", "ExactDescent", "ExactPenalty", "FiniteDifference", "NestedPenalty", "PartialSGD",
    "PenaltyActorCritic",
]  # fmt: skip
