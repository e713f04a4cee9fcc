"""Goal placement on a grid: the leader puts a goal, the agent walks to it, the leader's loss follows the agent."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model import small
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility
from bilevel_rl.finite.problem import BilevelProblem, GridLayout

MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # up, right, down, left


def grid_mdp(
    rows: int, columns: int, walls: tuple[tuple[int, int], ...] = (), slip: float = 0.1, discount: float = 0.95
) -> tuple[FiniteMDP, GridLayout]:
    """A grid with four moves. A blocked move stays; with probability `slip` one of the other three moves happens.

    Args:
        walls: cells (row, column) that are not states.
        slip: probability shared by the three other directions.

    Raises:
        InvalidProblem: no free cell, a wall outside, slip outside [0, 1].
    """
    outside = [wall for wall in walls if not (0 <= wall[0] < rows and 0 <= wall[1] < columns)]
    if rows < 1 or columns < 1 or outside or not 0 <= slip <= 1 or len(set(walls)) >= rows * columns:
        raise InvalidProblem(
            message("grid_mdp", f"{rows}x{columns}, slip {slip}, walls outside: {outside}",
                    "a grid has rows, columns >= 1, slip in [0, 1], walls inside it and a free cell", "Mend the grid")
        )  # fmt: skip
    blocked = np.zeros((rows, columns), bool)
    for wall in walls:
        blocked[wall] = True
    cells = np.argwhere(~blocked)
    number = np.full((rows, columns), -1)
    number[tuple(cells.T)] = np.arange(len(cells))
    target = cells[:, None, :] + MOVES[None]  # [S, 4, 2]
    inside = ((target >= 0) & (target < [rows, columns])).all(-1)
    reached = np.where(inside, number[tuple(np.clip(target, 0, [rows - 1, columns - 1]).transpose(2, 0, 1))], -1)
    reached = np.where(reached < 0, np.arange(len(cells))[:, None], reached)  # blocked: stay
    successors = np.broadcast_to(reached[:, None, :], (len(cells), 4, 4))
    probabilities = np.broadcast_to(np.where(np.eye(4, dtype=bool), 1 - slip, slip / 3), successors.shape)
    layout = GridLayout(rows, columns, cells, MOVES)
    return FiniteMDP.from_sparse(successors, probabilities, discount=discount), layout


class GoalPlacement(BilevelProblem):
    r"""The leader moves a goal $x \in [0,1]^2$; the agent is paid $r_x(s) = \exp(-|p(s) - x|^2 / (2\sigma^2))$.

    The leader earns $u(s) = \exp(-|p(s) - t|^2 / (2\sigma_u^2))$ where the agent goes and pays $c |x|^2$, so it must put
    the goal where the agent's optimal walk visits t, not simply at t. The default is a 6x6 grid whose optimum is known
    by brute force.

    Attributes:
        position: [S, 2] p(s): column / (columns - 1), row / (rows - 1).
        width: sigma.
    """

    position: Float[Array, "S 2"]
    width: float
    rows: int = eqx.field(static=True)
    columns: int = eqx.field(static=True)
    walls: tuple[tuple[int, int], ...] = eqx.field(static=True)

    name: ClassVar[str] = "goal_placement"
    state_reward: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)

    def __init__(
        self,
        rows: int = 6,
        columns: int = 6,
        walls: tuple[tuple[int, int], ...] = (),
        slip: float = 0.1,
        discount: float = 0.95,
        width: float = 0.25,
        target: tuple[float, float] = (0.8, 0.6),
        target_width: float = 0.2,
        cost: float = 0.05,
        x0: tuple[float, float] = (0.3, 0.35),
    ):
        self.rows, self.columns, self.walls = rows, columns, tuple(tuple(wall) for wall in walls)
        self.mdp, layout = grid_mdp(rows, columns, self.walls, slip, discount)
        cells = layout.cells
        self.position = jnp.asarray(cells[:, ::-1] / np.maximum([columns - 1, rows - 1], 1), float)
        self.width = width
        away = jnp.sum((self.position - jnp.asarray(target)) ** 2, -1)
        self.objective = VisitationUtility(jnp.exp(-away / (2 * target_width**2)), weight=cost)
        self.x0 = jnp.asarray(x0, float)

    def reward(self, x):
        r = jnp.exp(-jnp.sum((self.position - x) ** 2, -1) / (2 * self.width**2))
        return jnp.broadcast_to(r[:, None], (self.mdp.n_states, self.mdp.n_actions))

    def reward_at(self, x, s, a):
        return jnp.exp(-small.total((small.rows(self.position, s) - x) ** 2) / (2 * self.width**2))

    def box(self):
        return jnp.zeros(2), jnp.ones(2)

    def layout(self):
        return grid_mdp(self.rows, self.columns, self.walls)[1]

    def marker(self, x):
        return jnp.stack([x[1] * (self.rows - 1), x[0] * (self.columns - 1)])


# ours: two rooms and a corridor; the doors make the shortest way to the leader's target a detour
WALLS = tuple((row, 4) for row in range(10) if row not in (1, 7)) + tuple((5, column) for column in range(5, 9))


class WalledGoalPlacement(GoalPlacement):
    """Goal placement on a 10x10 grid of three rooms with three doors; its optimum is known by brute force."""

    name: ClassVar[str] = "walled_goal_placement"

    def __init__(
        self,
        rows: int = 10,
        columns: int = 10,
        walls: tuple[tuple[int, int], ...] = WALLS,
        slip: float = 0.1,
        discount: float = 0.95,
        width: float = 0.25,
        target: tuple[float, float] = (0.8, 0.75),
        target_width: float = 0.2,
        cost: float = 0.05,
        x0: tuple[float, float] = (0.25, 0.35),
    ):
        super().__init__(rows, columns, walls, slip, discount, width, target, target_width, cost, x0)


class GoalDistribution(GoalPlacement):
    r"""The leader chooses a distribution of the goal over cells, $q_x = \mathrm{softmax}(x)$, by its logits $x \in R^S$.

    The agent is paid for how near it is to a goal drawn from q: $r_x(s) = \sum_g q_x(g)
    \exp(-|p(s) - p(g)|^2 / (2\sigma^2))$. The leader's utility of the agent's walk is that of `GoalPlacement`; the
    logits cost $c |x|^2$, which keeps them finite.

    Attributes:
        near: [S, S] the pay in cell s when the goal is in cell g.
    """

    near: Float[Array, "S S"]

    name: ClassVar[str] = "goal_distribution"

    def __init__(
        self,
        rows: int = 6,
        columns: int = 6,
        walls: tuple[tuple[int, int], ...] = (),
        slip: float = 0.1,
        discount: float = 0.95,
        width: float = 0.25,
        target: tuple[float, float] = (0.8, 0.6),
        target_width: float = 0.2,
        cost: float = 0.0005,
        goal0: tuple[float, float] = (0.3, 0.35),
    ):
        super().__init__(rows, columns, walls, slip, discount, width, target, target_width, cost, goal0)
        apart = jnp.sum((self.position[:, None] - self.position[None]) ** 2, -1)
        self.near = jnp.exp(-apart / (2 * width**2))
        # a distribution around goal0: logits of a Gaussian three times as wide as the pay
        self.x0 = -jnp.sum((self.position - jnp.asarray(goal0)) ** 2, -1) / (2 * (3 * width) ** 2)

    def reward(self, x):
        r = self.near @ jax.nn.softmax(x)
        return jnp.broadcast_to(r[:, None], (self.mdp.n_states, self.mdp.n_actions))

    def reward_at(self, x, s, a):
        q = jax.nn.softmax(x)
        if 4 * s.size < self.mdp.n_states:
            return self.near[s] @ q
        return small.rows(self.near @ q, s)  # one table for all; over a batch of runs a product of matrices

    def box(self):
        return jnp.full_like(self.x0, -10.0), jnp.full_like(self.x0, 10.0)

    def marker(self, x):
        return super().marker(jax.nn.softmax(x) @ self.position)
