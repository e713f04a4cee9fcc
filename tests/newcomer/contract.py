"""A machine is whole or broken; its owner buys maintenance x, which moves the chance that it breaks."""

import jax
import jax.numpy as jnp

from bilevel_rl.finite import BilevelProblem, FiniteMDP
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility

WHOLE, BROKEN = range(2)


def chances(x):
    """Probabilities [s, a, s']: careful work breaks it seldom, the more so the more maintenance there is."""
    careful, hasty = 0.02 + 0.2 * jax.nn.sigmoid(-2 * x[0]), 0.1 + 0.5 * jax.nn.sigmoid(-2 * x[0])
    whole = jnp.array([[1 - careful, careful], [1 - hasty, hasty]])
    return jnp.stack([whole, jnp.array([[0.5, 0.5], [0.5, 0.5]])])


class Contract(BilevelProblem):
    """Haste pays the worker .3 more; the owner gains where the machine is whole, and maintenance costs .1 x^2."""

    name = "contract"
    x_names = ("maintenance",)

    def __init__(self):
        self.mdp = FiniteMDP.from_dense(chances(jnp.zeros(1)), start=[1, 0], discount=0.8)
        self.objective = VisitationUtility(jnp.array([1.0, 0.0]), weight=0.1)
        self.x0 = jnp.array([0.0])

    def reward(self, x):
        return jnp.array([[0.7, 1.0], [0.0, 0.0]])

    def transitions(self, x):
        return self.mdp.with_probabilities(chances(x))

    def box(self):
        return jnp.array([-1.0]), jnp.array([2.0])

    def temperature(self):
        return 0.1


problem = Contract
