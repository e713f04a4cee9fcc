"""What is a driver after, who was seen to choose among three places? Inverse reinforcement learning."""

import jax.numpy as jnp

from bilevel_rl.finite import BilevelProblem, FiniteMDP
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.objectives.demonstration_likelihood import DemonstrationLikelihood, demonstrations

TRUE = jnp.array([0.3, 0.6, 0.1])  # what the expert was paid; only differences can be found
OWN_TEMPERATURE = 0.3


class Demonstrations(BilevelProblem):
    """x is the reward of each of three places; every place is one step from every other."""

    name = "demonstrations"
    x_names = ("park", "shop", "office")

    def __init__(self):
        go = jnp.broadcast_to(0.9 * jnp.eye(3) + 0.1 / 3, (3, 3, 3))  # [s, a, s']: action a leads to place a
        self.mdp = FiniteMDP.from_dense(go, discount=0.8)
        expert = planning.soft_optimal(self.mdp, self.reward(TRUE), OWN_TEMPERATURE).pi
        self.objective = DemonstrationLikelihood(demonstrations(self.mdp, expert, None, 50), 1e-4)
        self.x0 = jnp.zeros(3)

    def reward(self, x):
        return jnp.broadcast_to(x[:, None], (3, 3))

    def temperature(self):
        return OWN_TEMPERATURE


problem = Demonstrations
