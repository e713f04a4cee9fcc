r"""Any environment that Gymnasium knows by an id: a follower that plans too short, paid for what it observes."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.outside import Hosted
from bilevel_rl.control.problem import ControlProblem

REACH = 10.0  # ours: observations count up to here, so that a fall does not decide x


class GymnasiumShaping(ControlProblem):
    r"""$r_x = (r + x \cdot o')/c$: the environment's own reward r, which is what the leader wants, and a price a coordinate.

    o' is what the follower observes after its step, each coordinate within [-10, 10]; c is `scale`. A follower whose
    $\gamma$ is smaller than the leader's is bounded: it plans too short.

    Args:
        id: of the environment, as `gymnasium.make` takes it.
        gamma: of the follower.
        gamma_upper: of the leader.
        scale: c, the size of a step's reward.
        reach: bound on each weight.

    Example:
        >>> GymnasiumShaping("CartPole-v1").x0.shape
        (4,)
    """

    x0: Float[Array, " d"]
    environment: Environment
    gamma: float
    gamma_upper: float
    scale: float
    reach: float

    name: ClassVar[str] = "gymnasium_shaping"

    def __init__(
        self, id: str = "Pendulum-v1", gamma: float = 0.8, gamma_upper: float = 0.98, scale: float = 8.0, reach: float = 8.0
    ):
        self.environment, self.gamma, self.gamma_upper = Hosted.of(id), gamma, gamma_upper
        self.scale, self.reach, self.x0 = scale, reach, jnp.zeros(self.environment.observation.size)

    @property
    def x_names(self):
        return tuple(f"observation_{i}" for i in range(self.x0.shape[0]))

    def discount_lower(self):
        return self.gamma

    def discount_upper(self):
        return self.gamma_upper

    def features(self, t):
        return jnp.concatenate([t.reward[None], jnp.clip(t.next_obs, -REACH, REACH)])

    def reward(self, x, features):
        return (features[0] + x @ features[1:]) / self.scale

    def utility(self, x, t):
        return t.reward / self.scale

    def box(self):
        return jnp.full(self.x0.shape, -self.reach), jnp.full(self.x0.shape, self.reach)
