"""What a follower is: frozen hyper-parameters, networks that a solver's state carries, three verbs."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.control.environment import OPEN, Environment
from bilevel_rl.control.policies import Policy, policy_for
from bilevel_rl.control.replay import Rows
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop.settings import check_fields


class Follower(eqx.Module):
    """A learning agent. Its methods take what it has learnt, F, as an argument, and return the next one.

    Followers have fields `rate`, a step size of Adam, `polyak`, the share by which target networks follow after an update,
    and `width`, the units of each of two hidden layers.
    """

    name: ClassVar[str] = "follower"
    discrete: ClassVar[bool | None] = None  # whether it chooses among numbered actions; None for either kind
    on_policy: ClassVar[bool] = False  # whether it learns from its own newest steps alone
    likelihood: ClassVar[bool] = True  # whether `law` and `out` say how likely an action is
    references: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def init(self, environment: Environment, key: Array) -> Any:
        """Networks before the first step."""

    @abc.abstractmethod
    def out(self, environment: Environment, F: Any, obs: Float[Array, "*B o"]) -> Float[Array, "*B q"]:
        """What the policy's network says of observations."""

    @abc.abstractmethod
    def update(
        self, environment: Environment, F: Any, rows: Rows, r: Float[Array, " B"], gamma: Any, tau: Any, key: Array
    ) -> Any:
        """One step of learning from rows that are paid r."""

    def on(self, environment: Environment) -> Follower:
        """The follower that acts here; itself, but for those that choose by the environment."""
        return self

    def prepared(self, problem: Any) -> Follower:
        """The follower with what it needs from the problem; itself, but for those that learn from demonstrations."""
        return self

    def ages(self, held: Any, written: Any, batch: int, key: Array) -> Any:
        """How many rows ago the rows of an update were written [B], from 0 on; None for all alike.

        Args:
            held, written: rows in the replay, and rows that were ever written.
        """
        return None

    def temperature(self, F: Any, tau: Any) -> Any:
        """The temperature in use: tau, but for followers that tune their own."""
        return tau

    def law(self, environment: Environment) -> Policy:
        """The family of its action laws."""
        return policy_for(environment.action)

    def act(self, environment: Environment, F: Any, obs: Float[Array, " o"], key: Array) -> Array:
        """An action in one state."""
        return self.law(environment).sample(self.out(environment, F, obs), key)[0]

    def mode(self, environment: Environment, F: Any, obs: Float[Array, " o"]) -> Array:
        """The greedy action."""
        return self.law(environment).mode(self.out(environment, F, obs))

    def drawn(
        self, environment: Environment, F: Any, obs: Float[Array, "B o"], M: int, key: Array
    ) -> Float[Array, "B M e"]:
        """M actions in each state, as critics see them."""
        law, out = self.law(environment), self.out(environment, F, obs)
        keys = jax.random.split(key, (obs.shape[0], M))
        return jax.vmap(lambda o, ks: jax.vmap(lambda k: law.encoded(law.sample(o, k)[0]))(ks))(out, keys)

    def check(self, environment: Environment) -> None:
        """Raise `InvalidConfig` for settings that are not allowed, or actions of a kind that it does not take."""
        where = f"follower {self.name}"
        discrete = hasattr(environment.action, "n")
        kind = "numbered actions" if self.discrete else "actions that are vectors"
        check_fields(
            where,
            ("rate", self.rate, self.rate > 0, "it must be above 0"),
            ("polyak", self.polyak, 0 < self.polyak <= 1, "it must be in (0, 1]"),
            ("width", self.width, self.width >= 1, "it must be at least 1"),
            ("environment", environment.name, self.discrete in (None, discrete), f"this follower takes {kind}"),
        )


def check_follower(where: str, follower: Any, environment: Environment) -> None:
    """Raise `InvalidConfig` for an agent of one's own, and for what the follower itself refuses."""
    if not isinstance(follower, Follower):
        raise InvalidConfig(
            message(f"{where}.follower", f"{type(follower).__name__}, which is no Follower",
                    "compiled solvers and estimators need its networks; an agent of one's own is a black box",
                    "Use control.agents.descend with spsa, finite_difference or nested")
        )  # fmt: skip
    follower.check(environment)


def scaled(environment: Environment, obs: Float[Array, "*B o"]) -> Float[Array, "*B o"]:
    """Observations in units of their bounds, where these are finite: networks see numbers of the size of 1."""
    low, high = np.asarray(environment.observation.low), np.asarray(environment.observation.high)
    reach = np.maximum(np.abs(low), np.abs(high))
    return obs / np.where(reach < OPEN, reach, 1.0).astype(np.float32)


def ongoing(rows: Rows) -> Float[Array, " B"]:
    """1 where something comes after a transition, 0 where the task has ended."""
    return 1.0 - rows.t.terminated.astype(jnp.float32)


def branch(follower: Follower, environment: Environment, F: Any, obs: Float[Array, "B o"], M: int, key: Array):
    """Actions in each state, and how much each counts under the policy.

    Args:
        M: how many are drawn where actions are vectors; choices are all listed.

    Returns:
        Encoded actions [B, M, e] and weights [B, M] that sum to one. Means under drawn weights are unbiased; covariances
        need the factor `spread`.
    """
    B = obs.shape[0]
    if hasattr(environment.action, "n"):
        n = environment.action.n
        everything = jnp.broadcast_to(jnp.eye(n, dtype=jnp.float32), (B, n, n))
        return everything, jax.nn.softmax(follower.out(environment, F, obs))
    return follower.drawn(environment, F, obs, M, key), jnp.full((B, M), 1.0 / M, jnp.float32)


def likely(follower: Follower, environment: Environment, F: Any, obs: Float[Array, "B o"], M: int, key: Array):
    """As `branch`, and the logarithm of each action's probability or density [B, M]; for followers that say it."""
    out = follower.out(environment, F, obs)
    if hasattr(environment.action, "n"):
        actions, weights = branch(follower, environment, F, obs, M, key)
        return actions, weights, jax.nn.log_softmax(out)
    law, keys = follower.law(environment), jax.random.split(key, (obs.shape[0], M))
    actions, logp = jax.vmap(lambda o, ks: jax.vmap(lambda k: law.sample(o, k))(ks))(out, keys)
    return jax.vmap(jax.vmap(law.encoded))(actions), jnp.full(logp.shape, 1.0 / M, jnp.float32), logp


def spread(environment: Environment, M: int) -> float:
    """By what a weighted covariance over `branch` is multiplied to be unbiased."""
    return 1.0 if hasattr(environment.action, "n") else M / (M - 1)
