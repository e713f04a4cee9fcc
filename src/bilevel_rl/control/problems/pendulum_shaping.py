r"""A pendulum whose follower plans too short: the leader adds to its reward what makes it swing up all the same."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Pendulum
from bilevel_rl.control.problem import ControlProblem

SCALE = 8.0  # ours: rewards lie in [-16.3, 0]; followers see them of the size of 1


class PendulumShaping(ControlProblem):
    r"""$r_x = (r + x \cdot \phi(s'))/8$, with r Pendulum's own reward, which is what the leader wants.

    $$\phi = (\cos\theta,\ -\dot\theta^2/8,\ \sin\theta\,\dot\theta/8,\ \cos\theta\,\dot\theta^2/8)$$

    The four say: high; slow; away from the bottom; slow above and fast below. A follower with $\gamma = .8$ sees about five
    steps of .05 s ahead and does not swing up by itself.

    Args:
        x0: weights of the features, in units of Pendulum's reward.
        gamma: of the follower.
        gamma_upper: of the leader.

    Example:
        >>> PendulumShaping(gamma=0.6).discount_lower()
        0.6
    """

    x0: Float[Array, " d"] = (0.0, 0.0, 0.0, 0.0)
    environment: Environment = Pendulum()
    gamma: float = 0.8
    gamma_upper: float = 0.98

    name: ClassVar[str] = "pendulum_shaping"
    x_names: ClassVar[tuple[str, ...]] = ("high", "slow", "away", "swing")

    def discount_lower(self):
        return self.gamma

    def discount_upper(self):
        return self.gamma_upper

    def features(self, t):
        cos, sin, speed = t.next_obs
        return jnp.stack([t.reward, cos, -(speed**2) / 8, sin * speed / 8, cos * speed**2 / 8])

    def reward(self, x, features):
        return (features[0] + x @ features[1:]) / SCALE

    def utility(self, x, t):
        return t.reward / SCALE

    def box(self):
        return jnp.full(4, -8.0), jnp.full(4, 8.0)
