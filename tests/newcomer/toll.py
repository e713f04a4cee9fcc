"""Two roads lead from home to work: the short one passes a school. Which toll on it is best?"""

import jax.numpy as jnp

from bilevel_rl.finite import BilevelProblem, FiniteMDP
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility

HOME, SCHOOL, BYPASS = range(3)


class Toll(BilevelProblem):
    """A toll x on the road that passes the school; drivers dislike minutes and tolls."""

    name = "toll"
    x_names = ("toll",)

    def __init__(self, harm: float = 1.0):
        roads = [[0, 1, 0], [0, 0, 1]]  # from home: the road by the school, the bypass
        back = [[1, 0, 0], [1, 0, 0]]
        self.mdp = FiniteMDP.from_dense([roads, back, back], start=[1, 0, 0], discount=0.8)
        self.objective = VisitationUtility(jnp.array([0.0, -harm, 0.0]), weight=0.2)
        self.x0 = jnp.array([0.1])

    def reward(self, x):
        minutes = jnp.array([0.0, 0.2, 0.5])
        return jnp.zeros((3, 2)) - (minutes + jnp.zeros(3).at[SCHOOL].set(x[0]))[:, None]

    def box(self):
        return jnp.array([0.0]), jnp.array([1.0])

    def temperature(self):
        return 0.1


problem = Toll
