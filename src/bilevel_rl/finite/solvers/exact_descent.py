r"""Gradient descent with the exact hyper-gradient: the yardstick every sampled method is measured against.

$$x \leftarrow \Pi_X\big(x - \zeta \nabla\Phi_\tau(x)\big)$$
"""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite import oracles
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.schedules import TEMPERATURE


class ExactDescent(Solver):
    """Projected gradient descent on the exact hyper-objective; uses the model, no samples.

    Args:
        step_size: zeta, constant.
        tau: temperature of the hyper-objective, in units of reward.

    References:
        The implicit function theorem; cost of one Newton solve and one linear solve, O(S^3), an iteration.
    """

    step_size: float = 0.1
    tau: float = TEMPERATURE

    name: ClassVar[str] = "exact_descent"
    action_sets: ClassVar[bool] = True
    crowds: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ()
    closed_form: ClassVar[bool] = True

    def check(self, problem: BilevelProblem) -> None:
        for field in ("step_size", "tau"):
            if not getattr(self, field) > 0:
                raise InvalidConfig(
                    message(f"{self.name}.{field}", getattr(self, field), "it must be above 0", f"Raise {field}")
                )

    def draws(self, problem: BilevelProblem) -> int:
        return 0

    def init(self, problem: BilevelProblem, x0, key) -> State:
        return State(x0, jnp.zeros((), int))

    def step(self, problem: BilevelProblem, state: State, k, noise) -> State:
        gradient = oracles.hyper_gradient(problem, state.x, self.tau)
        return State(problem.project(state.x - self.step_size * gradient), state.samples)
