"""A policy that is given and learns nothing: x moves it, as a weight of composition or a strength of guidance."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.follower import Follower, scaled
from bilevel_rl.control.policies import flow, guidance


class Given(Follower):
    """Acts by points that come from noise, in units of the half width of the action box, clipped to it.

    Problems make it (`ControlProblem.follower_at`); what it carries is nothing.

    Args:
        rate, polyak, width: what every follower has; unused.
    """

    rate: float = 1.0
    polyak: float = 1.0
    width: int = eqx.field(static=True, default=1)

    name: ClassVar[str] = "given"
    discrete: ClassVar[bool | None] = False
    likelihood: ClassVar[bool] = False

    @abc.abstractmethod
    def end(self, obs: Float[Array, " o"], noise: Float[Array, " m"], key: Array) -> Float[Array, " m"]:
        """The point [m] that a noise comes to; obs scaled."""

    def init(self, environment: Environment, key: Array) -> Any:
        return ()

    def out(self, environment: Environment, F: Any, obs: Float[Array, "*B o"]) -> Float[Array, "*B m"]:
        """Points that the middle of the noise comes to."""
        seen = scaled(environment, obs).reshape(-1, obs.shape[-1])
        middle, key = jnp.zeros(environment.action.size, jnp.float32), jax.random.key(0)
        return jax.vmap(lambda o: self.end(o, middle, key))(seen).reshape(*obs.shape[:-1], -1)

    def update(self, environment: Environment, F: Any, rows, r, gamma, tau, key) -> Any:
        return F

    def act(self, environment: Environment, F: Any, obs: Float[Array, " o"], key: Array) -> Array:
        return flow.decoded(environment.action, self._point(environment, scaled(environment, obs), key))

    def mode(self, environment: Environment, F: Any, obs: Float[Array, " o"]) -> Array:
        """What the middle of the noise comes to."""
        return flow.decoded(environment.action, self.out(environment, F, obs))

    def drawn(self, environment: Environment, F: Any, obs: Float[Array, "B o"], M: int, key: Array):
        keys, seen = jax.random.split(key, (obs.shape[0], M)), scaled(environment, obs)
        found = jax.vmap(lambda o, ks: jax.vmap(lambda k: self._point(environment, o, k))(ks))(seen, keys)
        return flow.encoded(environment.action, flow.decoded(environment.action, found))

    def _point(self, environment: Environment, obs: Array, key: Array) -> Float[Array, " m"]:
        k_noise, k_way = jax.random.split(key)
        return self.end(obs, jax.random.normal(k_noise, (environment.action.size,), jnp.float32), k_way)


class GivenFlow(Given):
    """Follows a velocity.

    Args:
        velocity: a `Velocity`, a `composition.Blend`, or any callable module.
        steps: of Euler's rule.
    """

    velocity: Callable = guidance.zero
    steps: int = eqx.field(static=True, default=8)

    name: ClassVar[str] = "given_flow"

    def end(self, obs, noise, key):
        return flow.integrate(self.velocity, noise, obs, self.steps)


class GivenChain(Given):
    """Follows a pushed chain.

    Args:
        chain: what is pushed.
        control: (z, t, obs) -> pushes.
    """

    chain: guidance.Chain = guidance.Broad()
    control: Callable = guidance.zero

    name: ClassVar[str] = "given_chain"

    def end(self, obs, noise, key):
        return self.chain.pushed(self.control, noise, obs, key).end
