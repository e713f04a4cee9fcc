r"""Where should behaviour go? The leader sets the descriptor that an archive's conditioned policy is asked for."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.elites.conditioned import similarity
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Arm
from bilevel_rl.control.problem import ControlProblem

VALUE = ((0.45, 0.35), 0.5)  # ours: the middle of what the leader values, and its width


class ArchiveTarget(ControlProblem):
    r"""An arm is paid $S(d, x)\,(1 - e)$: for a behaviour d, where its tip is, like the target x, and for little effort e.

    $S(d, x) = e^{-|d - x|/L}$ is what DCG-MAP-Elites relabels rewards with. The leader values places by a bump that the
    follower does not know, less what effort costs it: x should move to the near side of the bump.

    Args:
        x0: [2] the first target, in units of the arm's reach.
        reach: L.
        gamma: of both.
    """

    x0: Float[Array, " d"] = (0.7, -0.3)
    environment: Environment = Arm(joints=2)
    reach: float = 0.4
    gamma: float = 0.9

    name: ClassVar[str] = "archive_target"
    x_names: ClassVar[tuple[str, ...]] = ("tip_x", "tip_y")

    def discount_lower(self):
        return self.gamma

    def reward(self, x, features):
        return similarity(features[:2], x, self.reach) * (1 - features[2])

    def utility(self, x, t):
        middle, width = VALUE
        far = jnp.sum((t.info[:2] - jnp.asarray(middle, t.info.dtype)) ** 2)
        return jnp.exp(-far / (2 * width**2)) - 0.5 * t.info[2]

    def box(self):
        return jnp.full(2, -0.9), jnp.full(2, 0.9)
