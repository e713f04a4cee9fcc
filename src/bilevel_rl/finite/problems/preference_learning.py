"""RLHF in an MDP: x is the reward model, the agent is what it trains, a judge compares what the agent does."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.objectives.preference_likelihood import PreferenceLikelihood
from bilevel_rl.finite.problem import BilevelProblem


class PreferenceLearning(BilevelProblem):
    r"""The leader fits a reward model to a judge's choices between two trajectories of the agent it trains.

    $$r_x(s, a) = \sum_j x_j \phi_j(s, a), \qquad f = -E\big[\log\sigma(\pm(R_x(y_1) - R_x(y_2)))\big] + \lambda|x|^2$$

    The gold reward is not among those that x can express, and the pairs come from the agent that answers to x: the leader
    gains by a model that fits, and by an agent whose trajectories are easy to tell apart.

    Args:
        states, actions: S and A; the exact objective enumerates $(S A)^H$ trajectories.
        features: d.
        horizon: H.
        pairs: B, pairs an estimate.
        seed: of the instance.
        regulariser: lambda.
    """

    features: Float[Array, "S A d"]

    name: ClassVar[str] = "preference_learning"

    def __init__(
        self, states: int = 3, actions: int = 2, features: int = 2, horizon: int = 3, pairs: int = 8, seed: int = 0,
        regulariser: float = 0.02,
    ):  # fmt: skip
        rng = np.random.default_rng(seed)
        P = rng.standard_exponential((states, actions, states))
        self.mdp = FiniteMDP.from_dense(P / P.sum(-1, keepdims=True), discount=0.9)
        self.features = jnp.asarray(rng.normal(size=(states, actions, features)))
        gold = self.features @ jnp.linspace(1.5, -1.0, features) + 0.5 * rng.normal(size=(states, actions))
        self.objective = PreferenceLikelihood(gold, horizon=horizon, pairs=pairs, regulariser=regulariser)
        self.x0 = jnp.zeros(features)

    def reward(self, x):
        return self.features @ x

    def reward_at(self, x, s, a):
        r = jnp.zeros(s.shape)
        for j in range(self.features.shape[2]):
            r = r + self.features[s, a, j] * x[j]
        return r

    def box(self):
        return jnp.full_like(self.x0, -3.0), jnp.full_like(self.x0, 3.0)

    def temperature(self):
        return 0.5
