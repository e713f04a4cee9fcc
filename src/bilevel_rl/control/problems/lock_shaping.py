r"""A combination lock before a follower that plans too short and takes the bait; the leader pays for right choices."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import CombinationLock
from bilevel_rl.control.problem import ControlProblem


class LockShaping(ControlProblem):
    r"""$r_x = r + x_0\, 1[\text{right}] + x_1\, \text{progress}$; the leader wants the lock open, $u = 1[\text{open}]$.

    $c(x) = .05\,|x|^2$: cheap enough to pay for what is needed and no more.

    Args:
        x0: [2] bonus of a right choice, and of the place reached as a share of the length.
        gamma: of the follower.
        gamma_upper: of the leader.
    """

    x0: Float[Array, " d"] = (0.0, 0.0)
    environment: Environment = CombinationLock(length=3, choices=3)
    gamma: float = 0.5
    gamma_upper: float = 0.95

    name: ClassVar[str] = "lock_shaping"
    x_names: ClassVar[tuple[str, ...]] = ("right", "progress")

    def discount_lower(self):
        return self.gamma

    def discount_upper(self):
        return self.gamma_upper

    def features(self, t):
        return jnp.concatenate([t.reward[None], t.info])

    def reward(self, x, features):
        return features[0] + x @ features[1:]

    def utility(self, x, t):
        return t.terminated.astype(jnp.float32)

    def cost(self, x):
        return 0.05 * jnp.sum(x**2)

    def box(self):
        return jnp.full(2, -1.0), jnp.full(2, 1.0)
