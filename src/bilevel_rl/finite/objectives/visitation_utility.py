"""Upper objective linear in the visitation: the leader's utility of where the follower goes, less what x costs."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem, UpperObjective


class VisitationUtility(UpperObjective):
    r"""What the leader gains and pays where the follower goes, and a price of x itself.

    $$f(x, \pi) = -E_{s \sim d^\pi, a \sim \pi}\big[u(s, a) - \textstyle\sum_j x_j \phi_j(s, a)\big]
    + c\,|x - x_c|^2$$

    Args:
        utility: [S, A] or [S] u, in units of the objective.
        weight: c of the quadratic cost $c\,|x - x_c|^2$.
        centre: [d] $x_c$, or None for the origin.
        payments: [d, S, A] or [d, S] $\phi$: what the leader pays for each unit of x at each visit; None pays nothing.

    Example:
        >>> VisitationUtility(jnp.array([0.0, 1.0])).bonus(jnp.zeros(1)).shape
        (2, 1)
    """

    utility: Float[Array, "S A"]
    weight: float = 0.0
    centre: Float[Array, " d"] | None = None
    payments: Float[Array, "d S A"] | None = None

    name: ClassVar[str] = "visitation_utility"

    def __init__(self, utility, weight: float = 0.0, centre=None, payments=None):
        utility = jnp.asarray(utility, float)
        self.utility = utility[:, None] if utility.ndim == 1 else utility
        self.weight = weight
        self.centre = centre
        if payments is not None:
            payments = jnp.asarray(payments, float)
            payments = payments[..., None] if payments.ndim == 2 else payments
        self.payments = payments

    def bonus(self, x):
        return self.utility if self.payments is None else self.utility - jnp.tensordot(x, self.payments, 1)

    def bonus_at(self, x, s, a):
        u = self.utility[s, jnp.minimum(a, self.utility.shape[1] - 1)]
        if self.payments is None:
            return u
        # one dimension after the other: a sum in a fixed order, whatever the batch
        for j in range(self.payments.shape[0]):
            u = u - x[j] * self.payments[j, s, jnp.minimum(a, self.payments.shape[2] - 1)]
        return u

    def cost(self, x):
        away = x if self.centre is None else x - self.centre
        return self.weight * jnp.sum(away**2)

    def value(self, x, pi, problem: BilevelProblem):
        mdp = problem.transitions(x)
        d = mdp.ongoing(planning.visitation(mdp, pi))  # ends count nothing
        return self.visited_value(x, d[:, None] * pi)
