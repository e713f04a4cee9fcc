"""Neural followers: an environment of Gymnasium, a question about it, an answer. How high a tax on power earns most?"""

import gymnasium
import jax.numpy as jnp
import numpy as np
from gymnasium.spaces import Box, Discrete

from bilevel_rl.control import ControlProblem, Environment
from bilevel_rl.control.followers import SoftQ, Usual
from bilevel_rl.control.hosted import Hosted
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.solvers import Covariance
from bilevel_rl.loop import solve
from bilevel_rl.schedules import PowerDecay


class Heater(gymnasium.Env):
    """Each step the agent heats or not; warmth is worth .6 to it."""

    observation_space, action_space = Box(0.0, 1.0, (1,), np.float32), Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        return np.ones(1, np.float32), 0.6 * float(action), False, False, {"power": float(action)}


def heater():
    return gymnasium.wrappers.TimeLimit(Heater(), 20)


class Tax(ControlProblem):
    """x taxes a step of heating, and is what the leader earns by it."""

    x0 = jnp.zeros(1)
    environment: Environment = Hosted.of(heater, info=("power",))
    name = "tax"

    def features(self, t):
        return jnp.stack([t.reward, t.info[0]])

    def reward(self, x, features):
        return features[0] - x[0] * features[1]

    def utility(self, x, t):
        return x[0] * t.info[0]

    def discount_lower(self):
        return 0.5

    def box(self):
        return jnp.zeros(1), jnp.ones(1)


small = Covariance(
    follower=Usual(soft_q=SoftQ(width=16)), leader=Leader(zeta=PowerDecay(1.0, 0.5), hold=100.0), tau=0.2, chains=8,
    updates=2, batch=32, capacity=4096, recent=64,
)  # fmt: skip
trace = solve(Tax(), small, iterations=1000, record_every=100)
x = float(trace.x[0, -1, 0])
# the agent heats with probability p(x) = 1 / (1 + exp((x - .6) / .2)); x p(x) is largest at x = .51, where it is .31
print(f"a tax of {x:.2f} earns {trace['outcome'][0, -1]:.3f} a step, none earns 0")
assert 0.35 < x < 0.7
