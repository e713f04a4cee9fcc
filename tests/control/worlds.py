"""Small worlds in which everything is known, and small networks."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import Box, ControlProblem, Discrete, Environment, Step
from bilevel_rl.control import estimators as E
from bilevel_rl.control.followers import SAC, ActorCritic, SoftQ, Usual

FOLLOWER = Usual(SoftQ(width=8), SAC(width=8))
SMALL = {"chains": 4, "batch": 8, "capacity": 64, "recent": 8}


def small(kind, **options):
    """A solver with small networks and few rows."""
    if kind.name == "penalty_actor_critic":
        return kind(follower=ActorCritic(width=8), chains=4, **options)
    if kind.name in ("spsa", "finite_difference"):
        return kind(follower=FOLLOWER, inner=2, chains=4, batch=8, capacity=64, **options)
    estimator = kind().estimator
    if hasattr(estimator, "width"):
        fewer = {"actions": 4} if hasattr(estimator, "actions") else {}
        estimator = type(estimator)(width=8, **fewer)
    return kind(follower=FOLLOWER, estimator=estimator, **{**SMALL, **options})


class Arms(Environment):
    """One state; each arm pays a number that the problem knows. An episode has `length` steps; NaN comes after `broken`."""

    length: int = eqx.field(static=True, default=0)
    ends: bool = eqx.field(static=True, default=False)
    broken: float = float("inf")  # a number that is traced: whole and broken worlds are one compiled program

    name = "arms"
    info_names = ("arm",)

    @property
    def observation(self):
        return Box((0.0,), (1.0,))

    @property
    def action(self):
        return Discrete(3)

    @property
    def horizon(self):
        return 0 if self.ends else self.length

    def reset(self, key):
        return jnp.zeros((), jnp.int32), jnp.ones(1, jnp.float32)

    def step(self, state, action, key):
        state = state + 1
        over = (state >= self.length) & self.ends if self.length else jnp.zeros((), bool)
        reward = jnp.where(state > self.broken, jnp.nan, 1.0).astype(jnp.float32)
        return Step(state, jnp.ones(1, jnp.float32), reward, over, jnp.zeros((), bool), action[None].astype(jnp.float32))


class Pay(ControlProblem):
    """x pays the arms; the leader gains on the last two. At gamma = 0 the answer is softmax(x / tau)."""

    x0: Float[Array, " d"] = (0.1, 0.0, 0.05)
    environment: Environment = Arms()
    gamma: float = 0.0

    name = "pay"

    def discount_lower(self):
        return self.gamma

    def reward(self, x, features):
        return x @ jax.nn.one_hot(features[0].astype(int), 3, dtype=x.dtype)

    def utility(self, x, t):
        return jnp.array([0.0, 0.5, 1.0], t.reward.dtype)[t.info[0].astype(int)] * t.reward

    def cost(self, x):
        return 0.05 * jnp.sum(x**2)

    def box(self):
        return jnp.full(3, -1.0), jnp.full(3, 1.0)

    def truth(self, x, tau):
        return self.cost(x) - jax.nn.softmax(x / tau) @ jnp.array([0.0, 0.5, 1.0])

    def temperature(self):
        return 0.2


class Steer(ControlProblem):
    """Actions in a box; x says where the follower wants to be."""

    x0: Float[Array, " d"] = (0.2,)
    environment: Environment = None

    name = "steer"

    def __init__(self):
        from bilevel_rl.control.environments import Bounded

        self.environment, self.x0 = Bounded(), jnp.array([0.2])

    def discount_lower(self):
        return 0.8

    def features(self, t):
        return t.next_obs

    def reward(self, x, features):
        return -jnp.sum((features - x) ** 2)

    def utility(self, x, t):
        return -jnp.sum((t.next_obs - 0.5) ** 2)




class Varied(E.Covariance):
    """The covariance with its control variate."""

    variate: bool = eqx.field(static=True, default=True)


class Remembering(E.Covariance):
    """The covariance from the means of its networks."""

    memory: float = eqx.field(static=True, default=1.0)


ESTIMATORS = (E.Covariance, E.Trajectory, E.Backward, E.Reinforce, Varied, Remembering)
