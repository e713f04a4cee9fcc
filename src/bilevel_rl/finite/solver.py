"""What a solver of finite problems is, besides what `bilevel_rl.loop` asks of every solver."""

from __future__ import annotations

from typing import ClassVar

from jaxtyping import Array

from bilevel_rl.loop import solver as loop
from bilevel_rl.loop.driver import solve
from bilevel_rl.loop.solver import State, check_fits
from bilevel_rl.loop.trace import NON_FINITE, OK, Trace

__all__ = ["NON_FINITE", "OK", "Solver", "State", "Trace", "check_fits", "solve"]


class Solver(loop.Solver):
    """Frozen hyper-parameters, a pure `init` and a pure `step`, on tables of states and actions."""

    closed_form: ClassVar[bool] = False  # whether it needs the hyper-objective and x's set only, not an MDP
    action_sets: ClassVar[bool] = False  # whether it keeps to the actions that each state offers (`FiniteMDP.allowed`)

    crowds: ClassVar[bool] = False  # whether it takes rewards that depend on what a population does (`MeanFieldProblem`)

    def policies(self, problem, state: State, k) -> tuple[Array, Array] | None:
        """The tracked followers (pi, pi_l), each [S, A], for diagnosis; None for solvers that track none."""
        return None

    def tracked(self, problem, state: State, k) -> Array | None:
        """The tracked answer to x, pi [S, A]; None for solvers that track none."""
        pair = self.policies(problem, state, k)
        return None if pair is None else pair[0]
