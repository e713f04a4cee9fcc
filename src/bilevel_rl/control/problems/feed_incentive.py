r"""A feed's engine chases clicks; the platform pays it for topics, so that readers get what is worth their while."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Feed
from bilevel_rl.control.problem import ControlProblem


class FeedIncentive(ControlProblem):
    r"""$r_x = \text{click} + \sum_k x_k\, 1[\text{topic } k]$; the platform wants what clicks are worth.

    The engine looks $1/(1-\gamma)$ steps ahead, the platform further. $c(x) = .02\,|x|^2$.

    Args:
        x0: [4] what showing a topic pays, in clicks.
        gamma: of the engine.
        gamma_upper: of the platform.
    """

    x0: Float[Array, " d"] = (0.0, 0.0, 0.0, 0.0)
    environment: Environment = Feed()
    gamma: float = 0.5
    gamma_upper: float = 0.97

    name: ClassVar[str] = "feed_incentive"
    x_names: ClassVar[tuple[str, ...]] = ("topic 0", "topic 1", "topic 2", "topic 3")

    def discount_lower(self):
        return self.gamma

    def discount_upper(self):
        return self.gamma_upper

    def features(self, t):
        return jnp.concatenate([t.info[:1], t.info[2:]])

    def reward(self, x, features):
        return features[0] + x @ features[1:]

    def utility(self, x, t):
        return t.info[1]

    def cost(self, x):
        return 0.02 * jnp.sum(x**2)

    def box(self):
        return jnp.full(4, -2.0), jnp.full(4, 2.0)
