"""Four rooms: the leader puts penalties on cells so that walkers to several goals pass through a cell of its choice."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.feasible import softmax_budget, spend_on
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.model.contexts import side_by_side
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem, GridLayout, UpperObjective
from bilevel_rl.finite.problems.goal_placement import MOVES, grid_mdp

MAP = (
    "xxxxxxxxxxxxx",
    "x     x     x",
    "x     x     x",
    "x           x",
    "x     x     x",
    "x     x     x",
    "xx xxxx     x",
    "x     xxx xxx",
    "x     x     x",
    "x     x     x",
    "x           x",
    "x     x     x",
    "xxxxxxxxxxxxx",
)


class PassingThrough(UpperObjective):
    r"""Gain 1 a visit of the wanted cell, pay $\beta |x|_1$ when a walk arrives; discounted sums.

    $$f = -E\Big[\sum_t \gamma^t \big(1\{s_t = \text{wanted}\} - \beta\, |x|_1\, 1\{s_t = \text{goal}\}\big)\Big]$$

    Linear in the visitation, with $u_x = (1\{\text{wanted}\} - \beta |x|_1 1\{\text{goal}\})/(1-\gamma)$.

    Args:
        wanted, arrived: [S] indicators.
        price: $\beta$.
        budget: of the penalties, of which x is the share by `softmax_budget`.
        discount: $\gamma$.
    """

    wanted: Float[Array, " S"]
    arrived: Float[Array, " S"]
    price: float
    budget: float
    discount: float

    name: ClassVar[str] = "passing_through"

    def bonus(self, x):
        return (self.wanted - self._due(x) * self.arrived)[:, None] / (1 - self.discount)

    def bonus_at(self, x, s, a):
        return (self.wanted[s] - self._due(x) * self.arrived[s]) / (1 - self.discount)

    def value(self, x, pi, problem: BilevelProblem):
        return -jnp.dot(planning.visitation(problem.transitions(x), pi), self.bonus(x)[:, 0])

    def _due(self, x) -> Array:
        return self.price * jnp.sum(softmax_budget(x, self.budget))


class FourRooms(BilevelProblem):
    r"""Contextual reward shaping in four rooms: a budget of penalties, one cell the walkers are to pass, a price.

    A walker starts at (4, 1) and goes, with equal chance, to (1, 9) or to (11, 11); the context is its goal. The intended
    move happens with probability .56, each other with .44/3, a blocked move stays. The leader's $x \in R^{105}$ are logits:
    $p_s(x) = .2\, \mathrm{softmax}(x)_s$ on the 104 cells, the last entry being what it does not spend.

    $$r_x(s) = 1 \text{ at the goal, after which all is over,} \quad -p_s(x) \text{ elsewhere;} \qquad
    f = -E\Big[\sum_t \gamma^t \big(1\{s_t = (8,4)\} - \beta\, |p(x)|_1\, 1\{s_t = \text{goal}\}\big)\Big]$$

    Basins decide here: from random starts the exact hyper-gradient ends near -.5, from `start_at(cell)`, most of the budget
    on one doorway, at twice that.

    Args:
        goals: cells; each is a context.
        weights: of the contexts; uniform when None.
        price: $\beta$.
        temperature: entropy weight of the walkers; the study's .001, .003 and .005.
        budget: the largest sum of penalties.
        start, wanted: cells.
        slip: probability that another move than the intended one happens.
        discount: of both levels.
        seed: of $x_0 \sim N(0, I)$.

    Raises:
        InvalidProblem: a goal, start or wanted cell that is a wall.

    References:
        The four rooms of Thoma et al. 2024, whose simulator slips less (.33) than its matrix; both are the matrix here.
    """

    cell: Int[Array, " S"]
    gain: Float[Array, " S"]
    budget: float
    graded_at: float = eqx.field(static=True)
    n_contexts: int = eqx.field(static=True)

    name: ClassVar[str] = "four_rooms"
    state_reward: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("thoma2024hpgd",)

    def __init__(
        self,
        goals: tuple[tuple[int, int], ...] = ((1, 9), (11, 11)),
        weights: tuple[float, ...] | None = None,
        price: float = 1.0,
        temperature: float = 0.001,
        budget: float = 0.2,
        start: tuple[int, int] = (4, 1),
        wanted: tuple[int, int] = (8, 4),
        slip: float = 0.44,
        discount: float = 0.99,
        seed: int = 0,
    ):
        grid, layout = _rooms(slip, discount)
        number = {tuple(int(i) for i in cell): s for s, cell in enumerate(layout.cells)}
        walls = [cell for cell in (*goals, start, wanted) if tuple(cell) not in number]
        if walls or not goals:
            raise InvalidProblem(
                message(f"{type(self).__name__}", f"cells {walls} among goals, start and wanted",
                        "they must be free cells (row, column) of the map, and at least one a goal", "Choose other cells")
            )  # fmt: skip
        at = [number[tuple(goal)] for goal in goals]
        S = grid.n_states
        self.mdp = side_by_side([_arriving(grid, goal, number[tuple(start)]) for goal in at], weights)
        # one number a state of (context, cell or end): which penalty is due, and what is gained
        cell, gain, passed = (np.tile(row, (len(at), 1)) for row in (np.r_[0:S, S], np.zeros(S + 1), np.zeros(S + 1)))
        passed[:, number[tuple(wanted)]] = 1
        for context, goal in enumerate(at):
            cell[context, goal], gain[context, goal] = S, 1.0
        self.cell, self.gain = jnp.asarray(cell.ravel()), jnp.asarray(gain.ravel())
        self.objective = PassingThrough(jnp.asarray(passed.ravel()), self.gain, price, budget, discount)
        self.budget, self.graded_at, self.n_contexts = budget, temperature, len(at)
        self.x0 = jnp.asarray(np.random.default_rng(seed).normal(size=S + 1))

    def penalties(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """What each cell costs, and 0 for what costs nothing (goal and end): [105]."""
        return jnp.append(softmax_budget(x, self.budget), 0.0)

    def reward(self, x):
        r = self.gain - self.penalties(x)[self.cell]
        return jnp.broadcast_to(r[:, None], (self.mdp.n_states, self.mdp.n_actions))

    def reward_at(self, x, s, a):
        return self.gain[s] - self.penalties(x)[self.cell[s]]

    def start_at(self, *cells: tuple[int, int], logit: float = 5.0) -> Float[Array, " d"]:
        """A structured start: most of the budget on these cells."""
        _, layout = _rooms(0.0, 0.0)
        index = [int(np.flatnonzero((layout.cells == cell).all(1))[0]) for cell in cells]
        return spend_on(self.x0.shape[0], *index, logit=logit)

    def structured_starts(self) -> Float[Array, "n d"]:
        """Much of the budget on a doorway or on the cell before it, or on two of them: where searches start, besides random
        points. The pairs are for warm walkers: they lead to the best that is known at temperature .005."""
        cells = ((3, 5), (3, 6), (6, 2), (7, 9), (10, 6))
        pairs = (((3, 5), (10, 6)), ((3, 7), (10, 6)), ((3, 5), (3, 7)), ((3, 5), (3, 6)))
        single = [self.start_at(cell, logit=logit) for cell in cells for logit in (2.0, 4.0)]
        return jnp.stack(single + [self.start_at(*pair, logit=logit) for pair in pairs for logit in (5.0, 3.0)])

    def layout(self):
        _, layout = _rooms(0.0, 0.0)
        # the contexts beside each other; the end is drawn in the corner, which is a wall
        one = np.concatenate([layout.cells, [[0, 0]]])
        wide = layout.columns + 1
        cells = np.concatenate([one + np.array([0, context * wide]) for context in range(self.n_contexts)])
        return GridLayout(layout.rows, self.n_contexts * wide - 1, cells, MOVES)

    def temperature(self):
        return self.graded_at


class OneGoalFourRooms(FourRooms):
    """Four rooms with one goal, (1, 9), and the price 5: the same without contexts.

    References:
        The four rooms of the BC-HG study.
    """

    name: ClassVar[str] = "one_goal_four_rooms"
    references: ClassVar[tuple[str, ...]] = ("thoma2024hpgd", "bchg2026")

    def __init__(
        self, price: float = 5.0, temperature: float = 0.001, budget: float = 0.2, slip: float = 0.44,
        discount: float = 0.99, seed: int = 0,
    ):  # fmt: skip
        super().__init__(((1, 9),), None, price, temperature, budget, slip=slip, discount=discount, seed=seed)


def _rooms(slip: float, discount: float) -> tuple[FiniteMDP, GridLayout]:
    walls = tuple((row, column) for row, line in enumerate(MAP) for column, c in enumerate(line) if c == "x")
    return grid_mdp(len(MAP), len(MAP[0]), walls, slip, discount)


def _arriving(grid: FiniteMDP, goal: int, start: int) -> FiniteMDP:
    """The grid with an end S, to which the goal leads."""
    S, A, K = grid.successors.shape
    successors = np.concatenate([grid.successors, np.full((1, A, K), S)])
    successors[goal] = S
    probabilities = np.concatenate([grid.probabilities, np.full((1, A, K), 1 / K)])
    ends = np.arange(S + 1) == S
    return FiniteMDP.from_sparse(
        successors, probabilities, (np.arange(S + 1) == start).astype(float), float(grid.discount), ends
    )
