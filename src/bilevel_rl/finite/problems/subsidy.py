"""A subsidy on a grid: the leader pays the agent to walk to a far goal; on it regularisation costs something visible."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.model import small
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.problems.goal_placement import grid_mdp


class Subsidy(BilevelProblem):
    r"""The agent is paid at a near goal, and x times as much at a far one; the leader earns the far visits less the subsidy.

    $$r_x(s) = n_{near}(s) + x\, n_{far}(s), \qquad f(x, \pi) = -E_{d^\pi}\big[(1 - c x)\, n_{far}\big]$$

    with Gaussian bumps n. The optimal walk goes to the far goal from more and more cells as x grows, and all at once
    from many of them, so the unregularised hyper-objective jumps down at its optimum and rises slowly beyond it. Entropy
    blurs the jump: the best x at temperature tau lies further out the higher tau is. With the default numbers the best x at
    tau = .5, .2, .1 and .05, judged without regularisation, is 12.4, 7.6, 4.6 and 2.5 % worse than the optimum.

    Attributes:
        near: [S] pay at the near goal.
        far: [S] pay at the far goal, a unit of x.
        limit: x's upper bound, at which the leader earns nothing.
    """

    near: Float[Array, " S"]
    far: Float[Array, " S"]
    limit: float
    rows: int = eqx.field(static=True)
    columns: int = eqx.field(static=True)

    name: ClassVar[str] = "subsidy"
    state_reward: ClassVar[bool] = True

    def __init__(
        self,
        rows: int = 10,
        columns: int = 10,
        slip: float = 0.1,
        discount: float = 0.9,
        width: float = 0.2,
        near: tuple[float, float] = (0.2, 0.5),
        far: tuple[float, float] = (0.8, 0.5),
        price: float = 0.3,
        x0: float = 0.5,
    ):
        self.rows, self.columns, self.limit = rows, columns, 1 / price
        self.mdp, layout = grid_mdp(rows, columns, (), slip, discount)
        position = jnp.asarray(layout.cells[:, ::-1], float) / jnp.maximum(jnp.array([columns - 1, rows - 1]), 1)
        self.near, self.far = (
            jnp.exp(-jnp.sum((position - jnp.asarray(place, float)) ** 2, -1) / (2 * width**2)) for place in (near, far)
        )
        self.objective = VisitationUtility(self.far, payments=price * self.far[None])
        self.x0 = jnp.array([x0], float)

    def reward(self, x):
        return jnp.broadcast_to((self.near + x[0] * self.far)[:, None], (self.mdp.n_states, self.mdp.n_actions))

    def reward_at(self, x, s, a):
        return small.rows(self.near, s) + x[0] * small.rows(self.far, s)

    def box(self):
        return jnp.zeros(1), jnp.full(1, self.limit)

    def layout(self):
        return grid_mdp(self.rows, self.columns)[1]
