"""What followers share whose actions flow out of noise: how they act, and how their critic learns."""

# no `from __future__ import annotations`: Equinox reads `AbstractVar` only where annotations are evaluated
import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.follower import Follower, scaled
from bilevel_rl.control.policies import latent
from bilevel_rl.loop.settings import check_fields


class Flowing(Follower):
    """Acts by a latent point that has come from noise (`control.policies.latent`).

    Its broadest law is uniform on the action box, N(0, I) where a side is open. tau weighs the divergence from it, which on
    a box is the entropy but for a constant: the soft optimum is SAC's, and any shape of law can reach it.
    """

    steps: eqx.AbstractVar[int]

    discrete: ClassVar[bool | None] = False
    likelihood: ClassVar[bool] = False

    @abc.abstractmethod
    def end(self, environment: Environment, F: Any, obs: Float[Array, " o"], noise: Float[Array, " m"], key: Array) -> Array:
        """The latent point [m] that a noise comes to; obs scaled."""

    def out(self, environment: Environment, F: Any, obs: Float[Array, "*B o"]) -> Float[Array, "*B m"]:
        """Latent points that the middle of the noise comes to: these laws are not told apart by a few numbers."""
        seen = scaled(environment, obs).reshape(-1, obs.shape[-1])
        middle, key = jnp.zeros(environment.action.size, jnp.float32), jax.random.key(0)
        found = jax.vmap(lambda o: self.centre(environment, F, o, middle, key))(seen)
        return found.reshape(*obs.shape[:-1], -1)

    def centre(self, environment: Environment, F: Any, obs: Array, noise: Array, key: Array) -> Array:
        """As `end`, without noise on the way."""
        return self.end(environment, F, obs, noise, key)

    def act(self, environment: Environment, F: Any, obs: Float[Array, " o"], key: Array) -> Array:
        return latent.act(environment.action, self._point(environment, F, scaled(environment, obs), key))

    def mode(self, environment: Environment, F: Any, obs: Float[Array, " o"]) -> Array:
        """What the middle of the noise comes to."""
        return latent.act(environment.action, self.out(environment, F, obs))

    def drawn(self, environment: Environment, F: Any, obs: Float[Array, "B o"], M: int, key: Array):
        keys = jax.random.split(key, (obs.shape[0], M))
        seen = scaled(environment, obs)
        point = lambda o, k: self._point(environment, F, o, k)  # noqa: E731
        found = jax.vmap(lambda o, ks: jax.vmap(lambda k: point(o, k))(ks))(seen, keys)
        return latent.squashed(environment.action, found)

    def _point(self, environment: Environment, F: Any, obs: Array, key: Array) -> Float[Array, " m"]:
        k_noise, k_way = jax.random.split(key)
        noise = jax.random.normal(k_noise, (environment.action.size,), jnp.float32)
        return self.end(environment, F, obs, noise, k_way)

    def check(self, environment: Environment) -> None:
        super().check(environment)
        check_fields(f"follower {self.name}", ("steps", self.steps, self.steps >= 1, "it must be at least 1"))


def values(Q: nets.MLP, obs: Float[Array, "*B o"], action: Float[Array, "*B m"]) -> Float[Array, " *B"]:
    """Of pairs; obs scaled, actions as critics see them."""
    return Q(jnp.concatenate([obs, action], -1))[..., 0]


def make_critic(environment: Environment, width: int, key: Array) -> nets.MLP:
    """A network for `values`."""
    return nets.MLP.make((environment.observation.size + environment.action.size, width, width, 1), key)


def regressed(Q: nets.Trained, obs: Array, action: Array, y: Float[Array, " B"], rate: Any) -> nets.Trained:
    """A step of least squares towards y."""
    return Q.descend(jax.grad(lambda q: 0.5 * jnp.mean((values(q, obs, action) - y) ** 2))(Q.params), rate)
