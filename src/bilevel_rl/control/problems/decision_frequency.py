r"""How often should an agent look? The leader pays for every decision; x says how often there is one."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import OpenLoop, Pendulum
from bilevel_rl.control.problem import ControlProblem

SCALE = 8.0  # ours: of Pendulum's rewards, as in `pendulum_shaping`


class DecisionFrequency(ControlProblem):
    r"""After any step the agent looks with probability $1/(1 + e^{-x})$, and at the latest every J steps.

    The follower is paid Pendulum's own reward; the leader gets that, and pays `price` for each decision. x moves the
    environment (`environment_at`), so `spsa` and `finite_difference` run on it. The follower `srl` plans its sequences;
    others learn from what they know without looking.

    Args:
        x0: [1] log odds of a look.
        length: J, steps from look to look at most.
        price: of a decision, in units of the scaled reward.
        gamma: of both.
    """

    x0: Float[Array, " d"]
    environment: Environment
    price: float
    gamma: float

    name: ClassVar[str] = "decision_frequency"
    x_names: ClassVar[tuple[str, ...]] = ("log_odds_of_a_look",)

    def __init__(self, x0: tuple[float, ...] = (0.0,), length: int = 4, price: float = 0.05, gamma: float = 0.95):
        self.x0, self.environment = jnp.asarray(x0, float), OpenLoop(Pendulum(), length)
        self.price, self.gamma = price, gamma

    def environment_at(self, x):
        return dataclasses.replace(self.environment, anew=jax.nn.sigmoid(x[0]))

    def discount_lower(self):
        return self.gamma

    def features(self, t):
        # the follower's critic reads `info`; the reward needs one number
        return t.reward[None]

    def reward(self, x, features):
        return features[0] / SCALE

    def utility(self, x, t):
        return t.reward / SCALE - self.price * t.info[self.environment.info_names.index("decided")]

    def box(self):
        return jnp.full(1, -5.0), jnp.full(1, 5.0)
