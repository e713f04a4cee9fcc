"""Finite MDPs in JAX: planning, exact oracles, sampling, problems, solvers.

What it computes is 64-bit, whatever the caller's JAX is set to: hyper-gradients are graded to 1e-8 and better. Whoever
differentiates or compiles functions of it by himself calls `bilevel_rl.loop.use_64_bit()` once.
"""

from bilevel_rl.finite.checks import check_problem
from bilevel_rl.finite.model.discretised import discretised
from bilevel_rl.finite.model.mdp import FiniteMDP, gymnasium_rewards
from bilevel_rl.finite.problem import BilevelProblem, GraphLayout, GridLayout, UpperObjective
from bilevel_rl.finite.solver import Solver, State, Trace, solve

__all__ = [
    "BilevelProblem", "FiniteMDP", "GraphLayout", "GridLayout", "Solver", "State", "Trace", "UpperObjective",
    "check_problem", "discretised", "gymnasium_rewards", "solve",
]  # fmt: skip
