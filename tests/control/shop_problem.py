"""A user's own file: environment and problem in forty lines."""

import jax
import jax.numpy as jnp

from bilevel_rl.control import Box, ControlProblem, Discrete, Environment, Step


class Shop(Environment):
    name = "shop"
    observation = Box((0.0,), (1.0,))
    action = Discrete(3)
    horizon = 10

    def reset(self, key):
        demand = jax.random.uniform(key, (1,), jnp.float32)
        return demand, demand

    def step(self, state, action, key):
        price = 0.25 * (1 + action.astype(jnp.float32))
        sold = jnp.clip(state[0] - 0.5 * price, 0.0, 1.0)
        after = jax.random.uniform(key, (1,), jnp.float32)
        never = jnp.zeros((), bool)
        return Step(after, after, price * sold, never, never, jnp.stack([price, sold]))


class Subsidy(ControlProblem):
    environment: Environment = Shop()
    x0: jax.Array = (0.1,)
    name = "subsidy_of_sales"

    def features(self, t):
        return jnp.stack([t.reward, t.info[1]])

    def reward(self, x, features):
        return features[0] + x[0] * features[1]

    def utility(self, x, t):
        return (1 - x[0]) * t.info[1]
