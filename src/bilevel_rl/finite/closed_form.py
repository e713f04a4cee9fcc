r"""Problems that are not finite MDPs, but whose follower is known in closed form: $\Phi_\tau(x)$ is all they offer.

They share x's set, temperature and oracles with every other problem: `oracles.hyper_objective`, `oracles.hyper_gradient` and
`oracles.brute_force` take them, and so do the solvers that use nothing else (`Solver.closed_form`).
"""

from __future__ import annotations

import abc
from typing import ClassVar

from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.problem import BilevelProblem


class ClosedFormProblem(BilevelProblem):
    r"""Minimise $\Phi_\tau(x)$, given by `hyper_objective`; no table of states and actions.

    Subclass it, set `x0`, write `hyper_objective`, differentiable in x. `box` and `temperature` as elsewhere.
    """

    mdp: None
    objective: None

    name: ClassVar[str] = "closed_form"
    closed_form: ClassVar[bool] = True  # there is no table, and that is no mistake

    @abc.abstractmethod
    def hyper_objective(self, x: Float[Array, " d"], tau) -> Float[Array, ""]:
        r"""$\Phi_\tau(x)$: the upper objective at the follower's optimum with entropy weight tau."""

    def reward(self, x):
        raise InvalidProblem(
            message(f"{self.name}.reward", "a problem without a table of states and actions",
                    "its follower is known in closed form", "Use oracles.hyper_objective and oracles.hyper_gradient")
        )  # fmt: skip
