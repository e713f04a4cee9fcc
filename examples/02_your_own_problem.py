"""A problem of one's own in one class: pay an agent to take the longer, safer road."""

import jax.numpy as jnp

from bilevel_rl.finite import BilevelProblem, FiniteMDP, solve
from bilevel_rl.finite.checks import check_problem
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.solvers import ExactDescent


class SafeRoad(BilevelProblem):
    """Two roads. The first is worth 0.3 to the agent; the leader wants the second taken, and pays x for it."""

    name = "safe_road"

    def __init__(self):
        self.mdp = FiniteMDP.from_dense([[[1.0, 0.0], [0.0, 1.0]]] * 2, discount=0.9)
        self.objective = VisitationUtility(jnp.array([0.0, 1.0]), weight=0.2)
        self.x0 = jnp.array([0.1])

    def reward(self, x):
        return jnp.stack([jnp.full(2, 0.3), jnp.full(2, x[0])])

    def box(self):
        return jnp.array([0.0]), jnp.array([1.0])


problem = SafeRoad()
check_problem(problem)  # shapes, derivatives, projection, objective
trace = solve(problem, ExactDescent(step_size=0.5), iterations=100)
print(f"the leader pays {trace.x[0, -1, 0]:.3f}; the objective falls from {trace['objective'][0, 0]:.3f} "
      f"to {trace['objective'][0, -1]:.3f}")  # fmt: skip
assert trace.x[0, -1, 0] > 0.3, "it takes more than the first road is worth"
