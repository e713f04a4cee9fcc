"""Reward shaping on toy-text: x shapes the reward the follower learns from, the leader wants the true return."""

from __future__ import annotations

from typing import Any, ClassVar

import equinox as eqx
import gymnasium
import jax.numpy as jnp
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from gymnasium.envs.toy_text.taxi import TaxiEnv
from jaxtyping import Array, Float

from bilevel_rl.finite.model.mdp import FiniteMDP, gymnasium_rewards
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility
from bilevel_rl.finite.problem import BilevelProblem, GridLayout
from bilevel_rl.finite.problems.toy_text import LAKE_WORDS, TAXI_STATES, TAXI_WORDS, lake_layout, taxi_layout


class RewardShaping(BilevelProblem):
    r"""An environment's reward plus a bonus in each state, so that a short-sighted or noisy learner does well by the truth.

    $$r_x(s, a) = c\,r(s, a) + x_s, \qquad f(x, \pi) = -E_{s \sim d^\pi, a \sim \pi}\big[c\,r(s, a)\big]
    + \lambda |x|^2, \qquad |x_s| \le m$$

    The follower keeps the entropy weight tau, which costs it return under the true reward: shaping makes what is right
    pay by more than tau. The leader earns the environment's reward alone. An episode that ends starts the next one.

    Args:
        env: a toy-text environment (with a table `P`).
        scale: c; the environment's rewards in the units of the temperature.
        largest: m.
        regulariser: $\lambda$.
        discount: gamma.
        layout: how to draw the states.
        temperature: tau at which results are graded.

    References:
        Shaping as a bi-level problem: Hu et al. 2020.
    """

    base: Float[Array, "S A"]
    largest: float
    graded_at: float = eqx.field(static=True)
    picture: GridLayout | None = eqx.field(static=True)

    name: ClassVar[str] = "reward_shaping"
    references: ClassVar[tuple[str, ...]] = ("hu2020shaping", "towers2024gymnasium")

    def __init__(
        self, env: gymnasium.Env, scale: float = 1.0, largest: float = 1.0, regulariser: float = 1e-4,
        discount: float = 0.95, layout: GridLayout | None = None, temperature: float = 0.05,
    ):  # fmt: skip
        self.mdp = FiniteMDP.from_gymnasium(env, discount)
        self.base = scale * gymnasium_rewards(env)
        self.objective = VisitationUtility(self.base, weight=regulariser)
        self.x0 = jnp.zeros(self.mdp.n_states)
        self.largest, self.graded_at, self.picture = largest, temperature, layout

    def reward(self, x):
        return self.base + x[:, None]

    def reward_at(self, x, s, a):
        return self.base[s, a] + x[s]

    def box(self):
        return jnp.full_like(self.x0, -self.largest), jnp.full_like(self.x0, self.largest)

    def layout(self):
        return self.picture

    def temperature(self):
        return self.graded_at


class LakeShaping(RewardShaping):
    """Reward shaping on the slippery 4x4 lake."""

    name: ClassVar[str] = "lake_shaping"
    action_names: ClassVar[tuple[str, ...]] = LAKE_WORDS

    def __init__(self, temperature: float = 0.05, largest: float = 1.0, regulariser: float = 1e-4, **options: Any):
        env = FrozenLakeEnv(map_name="4x4", **options)
        super().__init__(env, 1.0, largest, regulariser, layout=lake_layout(env), temperature=temperature)


class TaxiShaping(RewardShaping):
    """Reward shaping of the taxi, 500 states; the environment's rewards (-1 a step, 20 for a delivery) count a tenth."""

    name: ClassVar[str] = "taxi_shaping"
    state_names: ClassVar[tuple[str, ...]] = TAXI_STATES
    action_names: ClassVar[tuple[str, ...]] = TAXI_WORDS

    def __init__(self, temperature: float = 0.2, largest: float = 1.0, regulariser: float = 1e-4, **options: Any):
        env = TaxiEnv(**options)
        super().__init__(env, 0.1, largest, regulariser, layout=taxi_layout(env), temperature=temperature)
