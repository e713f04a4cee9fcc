r"""Quasi-Newton descent with the exact hyper-gradient: what `exact_descent` reaches, in far fewer iterations.

$$p = -H_k \nabla\Phi_\tau(x_k), \qquad x_{k+1} = \Pi_X\big(x_k + t\, p\big)$$

with $H_k$ the limited-memory BFGS matrix of the last m pairs $s = x_{j+1} - x_j$,
$y = \nabla\Phi_\tau(x_{j+1}) - \nabla\Phi_\tau(x_j)$, and t from a search along the projected path, such that

$$\Phi_\tau(x(t)) \le \Phi_\tau(x_k) + c_1 \nabla\Phi_\tau(x_k)^\top (x(t) - x_k), \qquad
\nabla\Phi_\tau(x(t))^\top \big(x(2t) - x(t)\big) \ge c_2 \nabla\Phi_\tau(x_k)^\top (x(t) - x_k) .$$
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx

from bilevel_rl.finite import quasi_newton
from bilevel_rl.finite.learn.followers import check_fields
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.quasi_newton import MEMORY, TRIALS, QuasiNewtonState
from bilevel_rl.finite.solver import Solver
from bilevel_rl.schedules import TEMPERATURE


class ExactQuasiNewton(Solver):
    r"""Limited-memory BFGS on the exact hyper-objective, inside x's set; uses the model, no samples.

    An iteration makes one direction and one search along it. Bounds that the gradient pushes against are held, and the pairs
    count on the other coordinates only. A trial whose objective or gradient is not finite is too long. Where no trial is
    good enough, the pairs are forgotten and the next iteration takes the plain gradient; where that fails too x stays: it is
    stationary to rounding. The objective never rises. The first iteration only evaluates x0, and so does the first after the
    temperature has changed (a search that cools).

    Runs of a batch go one after the other, each with as many trials as it needs: the same bits as alone.

    Args:
        step_size: of the first trial along the negative gradient, where there are no pairs; the search lengthens or shortens
            it as needed.
        tau: temperature of the hyper-objective, in units of reward.
        memory: m >= 1 pairs; 30, because four rooms took three times as many iterations with 10 (ours).
        trials: at most this many evaluations an iteration.

    Example:
        >>> from bilevel_rl.finite import solve
        >>> from bilevel_rl.finite.problems import GoalPlacement
        >>> trace = solve(GoalPlacement(), ExactQuasiNewton(), iterations=25)
        >>> round(float(trace["objective"][0, -1]), 6)
        -0.636279

    References:
        Two-loop recursion: Liu & Nocedal 1989. Bounds: the two-metric projection of Bertsekas 1982. Search by doubling and
        bisection: Lewis & Overton 2013, its second condition restated for a path that bends (ours). An evaluation costs one
        Newton solve, begun at the last x's answer, and one linear solve, O(S^3); most iterations need one. Besides, O(m d).
    """

    step_size: float = 0.1
    tau: float = TEMPERATURE
    memory: int = eqx.field(static=True, default=MEMORY)
    trials: int = eqx.field(static=True, default=TRIALS)

    name: ClassVar[str] = "exact_quasi_newton"
    action_sets: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ()
    closed_form: ClassVar[bool] = True

    def check(self, problem: BilevelProblem) -> None:
        check_fields(
            self.name,
            ("step_size", self.step_size, self.step_size > 0, "it must be above 0"),
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("memory", self.memory, self.memory >= 1, "it must be at least 1"),
            ("trials", self.trials, self.trials >= 1, "it must be at least 1"),
        )

    def draws(self, problem: BilevelProblem) -> int:
        return 0

    def init(self, problem: BilevelProblem, x0, key) -> QuasiNewtonState:
        return quasi_newton.begin(problem, x0, self.memory)

    def step(self, problem: BilevelProblem, state: QuasiNewtonState, k, noise) -> QuasiNewtonState:
        return quasi_newton.step(problem, state, self.step_size, self.tau, self.trials)
