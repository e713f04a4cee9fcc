"""Upper objective linear in the visitation: the leader's utility of where the follower goes, less a cost of x."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite import planning
from bilevel_rl.finite.problem import BilevelProblem, UpperObjective


class VisitationUtility(UpperObjective):
    r"""$f(x, \pi) = -E_{s \sim d^\pi, a \sim \pi}[u(s, a)] + c\,|x - x_c|^2$.

    Args:
        utility: [S, A] or [S] u.
        weight: c of the quadratic cost $c\,|x - x_c|^2$.
        centre: [d] $x_c$, or None for the origin.

    Example:
        >>> VisitationUtility(jnp.array([0.0, 1.0])).bonus(jnp.zeros(1)).shape
        (2, 1)
    """

    utility: Float[Array, "S A"]
    weight: float = 0.0
    centre: Float[Array, " d"] | None = None

    def __init__(self, utility, weight: float = 0.0, centre=None):
        utility = jnp.asarray(utility, float)
        self.utility = utility[:, None] if utility.ndim == 1 else utility
        self.weight = weight
        self.centre = centre

    def bonus(self, x):
        return self.utility

    def bonus_at(self, x, s, a):
        return self.utility[s, jnp.minimum(a, self.utility.shape[1] - 1)]

    def cost(self, x):
        away = x if self.centre is None else x - self.centre
        return self.weight * jnp.sum(away**2)

    def value(self, x, pi, problem: BilevelProblem):
        d = planning.visitation(problem.transitions(x), pi)
        return self.cost(x) - jnp.sum(d[:, None] * pi * self.bonus(x))
