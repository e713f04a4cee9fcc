"""Finite MDPs in JAX: planning, exact oracles, sampling, problems, solvers.

Importing this package switches JAX to 64-bit (`bilevel_rl.loop` does): hyper-gradients are graded to 1e-8 and better.
"""

from bilevel_rl.finite.model.mdp import FiniteMDP, gymnasium_rewards
from bilevel_rl.finite.problem import BilevelProblem, GridLayout, UpperObjective
from bilevel_rl.finite.solver import Solver, State, Trace, solve

__all__ = [
    "BilevelProblem", "FiniteMDP", "GridLayout", "Solver", "State", "Trace", "UpperObjective", "gymnasium_rewards",
    "solve",
]  # fmt: skip
