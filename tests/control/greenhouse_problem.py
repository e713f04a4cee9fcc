"""A user's own file: an environment of Gymnasium's, made by a function, and a problem about it."""

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, Discrete

from bilevel_rl.control import ControlProblem, Environment
from bilevel_rl.control.hosted import Hosted


class Greenhouse(gymnasium.Env):
    observation_space = Box(-50.0, 100.0, (1,), np.float32)
    action_space = Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.warmth = self.np_random.uniform(5.0, 25.0)
        return np.array([self.warmth], np.float32), {}

    def step(self, action):
        self.warmth = 0.8 * self.warmth + 6.0 * float(action) + self.np_random.normal(0.0, 0.5)
        paid = -abs(self.warmth - 20.0) / 20.0
        return np.array([self.warmth], np.float32), paid, False, False, {"power": float(action)}


def greenhouse():
    return gymnasium.wrappers.TimeLimit(Greenhouse(), 10)


class Tariff(ControlProblem):
    x0: jax.Array = (0.0,)
    environment: Environment = Hosted.of(greenhouse, info=("power",))
    name = "tariff"

    def features(self, t):
        return jnp.stack([t.reward, t.info[0]])

    def reward(self, x, features):
        return features[0] - x[0] * features[1]

    def utility(self, x, t):
        return -((t.info[0] - 0.5) ** 2)

    def discount_lower(self):
        return 0.9


problem = Tariff
