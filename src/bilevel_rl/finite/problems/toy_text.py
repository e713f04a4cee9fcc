"""Incentives on Gymnasium's toy-text environments: the leader pays to lead the agent through cells of its choice."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import gymnasium
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.toy_text.cliffwalking import CliffWalkingEnv
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from gymnasium.envs.toy_text.taxi import TaxiEnv
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model.mdp import FiniteMDP, gymnasium_rewards
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility
from bilevel_rl.finite.problem import BilevelProblem, GridLayout

# row and column steps of the actions, in each environment's own order
LAKE_MOVES = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])  # left, down, right, up
CLIFF_MOVES = np.array([[-1, 0], [0, 1], [1, 0], [0, -1]])  # up, right, down, left
TAXI_MOVES = np.array([[1, 0], [-1, 0], [0, 1], [0, -1], [0, 0], [0, 0]])  # south, north, east, west, pick up, drop off
LAKE_WORDS = ("left", "down", "right", "up")
TAXI_WORDS = ("south", "north", "east", "west", "pick up", "drop off")
TAXI_STANDS = "RGYB"  # at (0, 0), (0, 4), (4, 0), (4, 3)
CLIFF_MAP = (" " * 12, " " * 12, " " * 12, "S" + "C" * 10 + "G")


class Incentives(BilevelProblem):
    r"""An environment's own reward plus what the leader offers at places of its choice.

    $$r_x(s, a) = c\, r(s, a) + \sum_j x_j \phi_j(s), \qquad
    f(x, \pi) = -E_{s \sim d^\pi}\big[u(s) - \textstyle\sum_j x_j \phi_j(s)\big], \qquad 0 \le x \le m$$

    The leader gains u where the agent goes and pays each offer whenever the agent collects it: too little, and the agent
    goes its own way; too much, and the leader pays for what it could have had for less. An episode that ends starts
    the next one.

    Args:
        env: a toy-text environment (with a table `P`).
        features: [d, S] $\phi$, where each offer is paid.
        utility: [S] u, in units of the objective.
        x0: [d] offers to start from.
        largest: m, the largest offer.
        scale: c; the environment's rewards in the units of the temperature.
        discount: gamma.
        layout: how to draw the states.
        temperature: tau at which results are graded.

    Raises:
        InvalidProblem: features or utility of another shape than [d, S] and [S].
    """

    base: Float[Array, "S A"]
    features: Float[Array, "d S"]
    largest: float
    graded_at: float = eqx.field(static=True)
    picture: GridLayout | None = eqx.field(static=True)

    name: ClassVar[str] = "incentives"
    references: ClassVar[tuple[str, ...]] = ("towers2024gymnasium",)

    def __init__(
        self,
        env: gymnasium.Env,
        features: ArrayLike,
        utility: ArrayLike,
        x0: ArrayLike,
        largest: float = 1.0,
        scale: float = 1.0,
        discount: float = 0.95,
        layout: GridLayout | None = None,
        temperature: float = 0.05,
    ):
        self.mdp = FiniteMDP.from_gymnasium(env, discount)
        self.base = scale * gymnasium_rewards(env)
        features, utility = np.asarray(features, float), np.asarray(utility, float)
        S, d = self.mdp.n_states, np.size(x0)
        if features.shape != (d, S) or utility.shape != (S,):
            raise InvalidProblem(
                message(f"{type(self).__name__}.features", f"shapes {features.shape} and {utility.shape}",
                        f"features must be [d, S] = [{d}, {S}] and utility [{S}]", "Give one row an offer")
            )  # fmt: skip
        self.features = jnp.asarray(features)
        self.objective = VisitationUtility(utility, payments=features)
        self.x0 = jnp.asarray(x0, float)
        self.largest = largest
        self.graded_at = temperature
        self.picture = layout

    def reward(self, x):
        return self.base + (x @ self.features)[:, None]

    def reward_at(self, x, s, a):
        r = self.base[s, a]
        # one offer after the other: a sum in a fixed order, whatever the batch
        for j in range(self.features.shape[0]):
            r = r + x[j] * self.features[j, s]
        return r

    def box(self):
        return jnp.zeros_like(self.x0), jnp.full_like(self.x0, self.largest)

    def layout(self):
        return self.picture

    def temperature(self):
        return self.graded_at


def _cells(rows: int, columns: int, *places: tuple[int, int]) -> np.ndarray:
    """Indicator [S] of grid cells."""
    mask = np.zeros((rows, columns))
    mask[tuple(np.transpose(places))] = 1.0
    return mask.ravel()


def lake_layout(env: FrozenLakeEnv) -> GridLayout:
    """The lake as its map has it: S start, H hole, G goal."""
    return _grid(tuple("".join(cell.decode() for cell in row) for row in env.desc), LAKE_MOVES)


def taxi_layout(env: TaxiEnv) -> GridLayout:
    """The town of the taxi: twenty states in each cell, stands by their letters, walls between cells."""
    plan = [[cell.decode() for cell in row] for row in env.desc][1:-1]
    letters = tuple("".join(row[1::2]) for row in plan)
    walls = tuple((r, c, r, c + 1) for r, row in enumerate(plan) for c in range(4) if row[2 * c + 2] == "|")
    state = np.arange(500)
    return GridLayout(5, 5, np.stack([state // 100, state // 20 % 5], axis=1), TAXI_MOVES, letters, walls)


def _taxi_names() -> tuple[str, ...]:
    where = [*(f"passenger at {stand}" for stand in TAXI_STANDS), "passenger aboard"]
    return tuple(
        f"({s // 100}, {s // 20 % 5}), {where[s // 4 % 5]}, to {TAXI_STANDS[s % 4]}" for s in range(500)
    )  # fmt: skip


TAXI_STATES = _taxi_names()


def _grid(letters: tuple[str, ...], moves: np.ndarray) -> GridLayout:
    """A state a cell of the map."""
    rows, columns = len(letters), len(letters[0])
    return GridLayout(rows, columns, np.argwhere(np.ones((rows, columns), bool)), moves, letters)


class FrozenLake(Incentives):
    """The slippery 4x4 lake: offers at two cells of the top row, which keep the agent away from the holes.

    The leader gains 1 at (0, 1) and 1/2 at (0, 3); offers are collected at (0, 3) and (0, 1). Offering nothing gives
    -0.16, offering 0.8 at both 0.05; the best offers lie inside the box (ours: chosen by search for such an optimum).
    """

    name: ClassVar[str] = "frozen_lake"
    action_names: ClassVar[tuple[str, ...]] = LAKE_WORDS

    def __init__(self, x0: ArrayLike = (0.8, 0.8), temperature: float = 0.02, **options: Any):
        top, corner = _cells(4, 4, (0, 1)), _cells(4, 4, (0, 3))
        env = FrozenLakeEnv(map_name="4x4", **options)
        super().__init__(
            env, [corner, top], top + corner / 2, x0, layout=lake_layout(env), temperature=temperature
        )


class FrozenLake8x8(Incentives):
    """The slippery 8x8 lake: the leader gains 1 at (0, 3) and 1/2 at (0, 1), and makes offers at (0, 1) and (0, 4)."""

    name: ClassVar[str] = "frozen_lake_8x8"
    action_names: ClassVar[tuple[str, ...]] = LAKE_WORDS

    def __init__(self, x0: ArrayLike = (0.8, 0.8), temperature: float = 0.02, **options: Any):
        wanted = _cells(8, 8, (0, 3)) + _cells(8, 8, (0, 1)) / 2
        env = FrozenLakeEnv(map_name="8x8", **options)
        super().__init__(
            env, [_cells(8, 8, (0, 1)), _cells(8, 8, (0, 4))], wanted, x0, layout=lake_layout(env),
            temperature=temperature,
        )  # fmt: skip


class CliffWalking(Incentives):
    """Walking by a cliff: the leader gains 1 at (1, 4), away from the edge, and makes offers at (1, 3) and (1, 5).

    The environment's rewards (-1 a step, -100 over the cliff) count a tenth.
    """

    name: ClassVar[str] = "cliff_walking"
    action_names: ClassVar[tuple[str, ...]] = ("up", "right", "down", "left")

    def __init__(self, x0: ArrayLike = (0.8, 0.8), temperature: float = 0.05, **options: Any):
        features = [_cells(4, 12, (1, 3)), _cells(4, 12, (1, 5))]
        super().__init__(
            CliffWalkingEnv(**options), features, _cells(4, 12, (1, 4)), x0, scale=0.1,
            layout=_grid(CLIFF_MAP, CLIFF_MOVES), temperature=temperature,
        )  # fmt: skip


class Taxi(Incentives):
    """A taxi of 500 states: the leader wants it loaded at the corner (0, 0), and empty at (0, 0) and (4, 4).

    Offers are made to the loaded taxi at (0, 0) and to the empty one at (4, 4). The environment's rewards (-1 a step,
    -10 for a wrong stop, 20 for a delivery) count a tenth. States are ((row 5 + column) 5 + passenger) 4 + destination.
    """

    name: ClassVar[str] = "taxi"
    state_names: ClassVar[tuple[str, ...]] = TAXI_STATES
    action_names: ClassVar[tuple[str, ...]] = TAXI_WORDS

    def __init__(self, x0: ArrayLike = (0.5, 0.5), temperature: float = 0.05, **options: Any):
        state = np.arange(500)
        row, column, loaded = state // 100, state // 20 % 5, state // 4 % 5 == 4
        at_first, at_last = (row == 0) & (column == 0), (row == 4) & (column == 4)
        offers = np.stack([at_first & loaded, at_last & ~loaded]).astype(float)
        env = TaxiEnv(**options)
        super().__init__(
            env, offers, offers.sum(0) + (at_first & ~loaded), x0, largest=0.6, scale=0.1, layout=taxi_layout(env),
            temperature=temperature,
        )  # fmt: skip
