"""Solvers, one file each.

Every solver takes every upper objective and kernels that depend on x; two estimators of `coupled_penalty` do not take the
latter, and its `check` names those that do.
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
