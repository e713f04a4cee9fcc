"""A walker on Gymnasium's frozen lake is offered money at two cells, to keep it on the safe side."""

import jax.numpy as jnp
import numpy as np
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

from bilevel_rl.finite import BilevelProblem, FiniteMDP, GridLayout, gymnasium_rewards
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility

OFFERS = jnp.array([1, 3])  # cells of the top row
MOVES = np.array([[0, -1], [1, 0], [0, 1], [-1, 0]])  # left, down, right, up


class Lake(BilevelProblem):
    """x: what is paid at each of the two cells; the leader gains at the first, half of that at the second, and pays."""

    name = "lake"
    x_names = ("offer at (0, 1)", "offer at (0, 3)")

    def __init__(self):
        env = FrozenLakeEnv(map_name="4x4")
        self.mdp = FiniteMDP.from_gymnasium(env, 0.95)
        self.own = gymnasium_rewards(env)
        paid = jnp.eye(16)[OFFERS]
        self.objective = VisitationUtility(paid[0] + paid[1] / 2, payments=paid)
        self.x0 = jnp.array([0.8, 0.8])

    own: jnp.ndarray

    def reward(self, x):
        return self.own + (x @ jnp.eye(16)[OFFERS])[:, None]

    def box(self):
        return jnp.zeros(2), jnp.ones(2)

    def layout(self):
        return GridLayout(4, 4, np.argwhere(np.ones((4, 4), bool)), MOVES)


problem = Lake
