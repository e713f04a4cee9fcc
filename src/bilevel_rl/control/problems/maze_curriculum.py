r"""A maze whose goal pays only there: the leader chooses where the follower begins while it learns."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Maze
from bilevel_rl.control.problem import ControlProblem


class MazeCurriculum(ControlProblem):
    r"""The follower learns from starts drawn from softmax(x) over four regions; the leader wants it to get there from S.

    x moves the environment and not the reward, so it takes a solver that looks at outcomes alone (`spsa`,
    `finite_difference`, `nested`). What an episode from S gains counts by $1/p_S$, one from elsewhere not at all: the mean
    is that of the task, whatever x is. The box keeps $p_S$ above .016.

    Args:
        x0: [4] preferences of the regions, from S to the goal's neighbourhood; 0 for all alike.
        gamma: of both.
    """

    x0: Float[Array, " d"] = (0.0, 0.0, 0.0, 0.0)
    environment: Environment = Maze()
    gamma: float = 0.97

    name: ClassVar[str] = "maze_curriculum"
    x_names: ClassVar[tuple[str, ...]] = ("S", "far", "middle", "near")

    def discount_lower(self):
        return self.gamma

    def features(self, t):
        return t.reward[None]

    def reward(self, x, features):
        return features[0]

    def utility(self, x, t):
        return t.reward * t.info[0] / jax.nn.softmax(x)[0].astype(jnp.float32)

    def environment_at(self, x):
        return eqx.tree_at(lambda e: e.starts, self.environment, jax.nn.softmax(x), is_leaf=lambda v: isinstance(v, tuple))

    def box(self):
        return jnp.full(4, -1.5), jnp.full(4, 1.5)
