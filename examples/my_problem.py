"""A problem of one's own, to be named on the command line: `bilevel-rl run examples/my_problem.py`."""

import jax.numpy as jnp

from bilevel_rl.finite import BilevelProblem, FiniteMDP
from bilevel_rl.finite.objectives import VisitationUtility


class Toll(BilevelProblem):
    """Two roads. The first is worth 0.3 to a driver; the leader pays x to whoever takes the second, and wants it taken.

    Args:
        x0: the first payment.
    """

    name = "toll"
    x_names = ("payment",)
    state_names = ("first road", "second road")
    action_names = ("take the first", "take the second")

    def __init__(self, x0: float = 0.1):
        # action a leads to road a, whatever the state
        self.mdp = FiniteMDP.from_dense([[[1.0, 0.0], [0.0, 1.0]]] * 2, discount=0.9)
        self.objective = VisitationUtility(jnp.array([0.0, 1.0]), weight=0.2)
        self.x0 = jnp.array([x0])

    def reward(self, x):  # [S, A]
        return jnp.stack([jnp.full(2, 0.3), jnp.full(2, x[0])])

    def box(self):
        return jnp.array([0.0]), jnp.array([1.0])


problem = Toll
