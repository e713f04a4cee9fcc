r"""Rewards from a teacher's preferences between segments of paths."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Pendulum
from bilevel_rl.control.problem import ControlProblem, Transition
from bilevel_rl.control.problems import experts


def described(t: Transition) -> Float[Array, " 4"]:
    """What rewards are made of: high, slow, away from the bottom, slow above and fast below."""
    cos, sin, speed = t.next_obs
    return jnp.stack([cos, -(speed**2) / 8, sin * speed / 8, cos * speed**2 / 8])


class PendulumPreferences(ControlProblem):
    r"""$\Phi(x) = -\frac1N \sum_i \log \sigma\big(\pm\, x \cdot (\phi(\sigma^1_i) - \phi(\sigma^2_i))\big) + .001\,|x|^2$.

    N pairs of segments of paths of Pendulum, of which some swing up and others move at random; the teacher prefers the one
    with the larger true reward, with probability $\sigma(\Delta/8)$. $\phi(\sigma)$ is the sum over a segment of
    $(\cos\theta,\ -\dot\theta^2/8,\ \sin\theta\,\dot\theta/8,\ \cos\theta\,\dot\theta^2/8)$.

    The labels are all there is: $\Phi$ is convex in x and known exactly (`truth`), the follower learns beside it under a
    reward that is being learnt. What counts is what a fresh follower then earns by Pendulum's own reward.

    Args:
        x0: [4] weights.
        pairs: N.
        length: steps of a segment.
        gamma: of both.

    References:
        Christiano et al. 2017, arXiv 1706.03741, with a pool of segments that is fixed.
    """

    x0: Float[Array, " d"]
    environment: Environment
    ahead: Float[Array, "N p"]  # features of the preferred segment less those of the other
    gamma: float

    name: ClassVar[str] = "pendulum_preferences"
    x_names: ClassVar[tuple[str, ...]] = ("high", "slow", "away", "swing")

    def __init__(self, x0: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0), pairs: int = 200, length: int = 20,
                 gamma: float = 0.98):  # fmt: skip
        self.x0, self.environment, self.gamma = jnp.asarray(x0, float), Pendulum(), gamma
        self.ahead = jax.jit(self._labelled, static_argnums=(0, 1))(pairs, length, jax.random.key(11))

    @staticmethod
    def _labelled(pairs: int, length: int, key: Array) -> Float[Array, "N p"]:
        k_good, k_random, k_cut, k_label = jax.random.split(key, 4)
        still = lambda obs: jnp.zeros(1, jnp.float32)  # noqa: E731
        pools = [experts.paths(Pendulum(), act, 32, 200, noise, k)
                 for act, noise, k in ((experts.swing_up, 0.3, k_good), (still, 1.0, k_random))]  # fmt: skip
        t = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *pools)
        phi = jnp.concatenate([jax.vmap(jax.vmap(described))(t), t.reward[..., None]], -1)
        total = jnp.concatenate([jnp.zeros_like(phi[:, :1]), jnp.cumsum(phi, 1)], 1)
        k_path, k_start = jax.random.split(k_cut)
        path = jax.random.randint(k_path, (2, pairs), 0, phi.shape[0])
        start = jax.random.randint(k_start, (2, pairs), 0, phi.shape[1] - length)
        segment = total[path, start + length] - total[path, start]
        way = segment[0] - segment[1]
        likes = jax.random.uniform(k_label, (pairs,)) < jax.nn.sigmoid(way[:, -1] / 8)
        return jnp.where(likes[:, None], way, -way)[:, :-1].astype(float)

    def discount_lower(self):
        return self.gamma

    def features(self, t):
        return described(t)

    def reward(self, x, features):
        return x @ features

    def utility(self, x, t):
        return jnp.zeros((), jnp.float32)

    def cost(self, x):
        return jnp.mean(jax.nn.softplus(-self.ahead @ x)) + 0.001 * jnp.sum(x**2)

    def truth(self, x, tau):
        return self.cost(x)

    def box(self):
        return jnp.full(4, -3.0), jnp.full(4, 3.0)
