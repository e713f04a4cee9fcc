"""What learns from stored data alone: frozen hyper-parameters, networks that are carried, one contract for all."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.offline import parts
from bilevel_rl.control.offline.bank import Bank, Facts, Minibatch, draw
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop.settings import check_fields


class OfflineLearner(eqx.Module):
    """A learner from data. What it has learnt, F, is an argument of its methods, and they return the next one.

    `update` is pure: a training run is one scan over it, seeds are a `vmap` (`offline.protocol`). Most learners act by the
    present observation alone; others carry a memory through an episode (`recall`, `noted`).

    Args:
        rate: step size of Adam.
        polyak: share by which target networks follow after an update.
        width: units of each of two hidden layers.
    """

    rate: float = 1e-3
    polyak: float = 0.01
    width: int = eqx.field(static=True, default=64)

    name: ClassVar[str] = "offline_learner"
    discrete: ClassVar[bool | None] = None  # whether it chooses among numbered actions; None for either kind
    likelihood: ClassVar[bool] = False  # whether `log_prob` is there
    references: ClassVar[tuple[str, ...]] = ()
    inferred: ClassVar[str] = ""  # what of it is ours, since nobody here has seen it published

    @property
    def window(self) -> int:
        """Steps in a row that an update sees of each drawn row; above 1, batches have an axis of steps."""
        return 1

    @abc.abstractmethod
    def init(self, environment: Environment, facts: Facts, key: Array) -> Any:
        """Networks before the first update."""

    @abc.abstractmethod
    def update(self, environment: Environment, F: Any, batch: Minibatch, gamma: Any, k: Any, key: Array) -> Any:
        """One update.

        Args:
            gamma: discount.
            k: number of the update, from 0.
        """

    @abc.abstractmethod
    def act(self, environment: Environment, F: Any, memory: Any, obs: Float[Array, " o"], key: Array) -> tuple[Array, Any]:
        """What it does in one state, its best action where it has one; and its memory."""

    def recall(self, environment: Environment, F: Any) -> Any:
        """The memory at the start of an episode."""
        return ()

    def noted(self, environment: Environment, F: Any, memory: Any, obs: Array, action: Array, reward: Array) -> Any:
        """The memory after a step, whose reward is the environment's own."""
        return memory

    def log_prob(self, environment: Environment, F: Any, obs: Float[Array, "*B o"], action: Array) -> Float[Array, "*B"]:
        """Of given actions, where `likelihood` says so."""
        raise NotImplementedError(f"{self.name} has no likelihood")

    def check(self, environment: Environment) -> None:
        """Raise `InvalidConfig` for settings that are not allowed, or actions of a kind that it does not take."""
        where = f"learner {self.name}"
        check_fields(
            where,
            ("rate", self.rate, self.rate > 0, "it must be above 0"),
            ("polyak", self.polyak, 0 < self.polyak <= 1, "it must be in (0, 1]"),
            ("width", self.width, self.width >= 1, "it must be at least 1"),
        )
        numbered = hasattr(environment.action, "n")
        if self.discrete not in (None, numbered):
            kind = "numbered actions" if self.discrete else "actions that are vectors"
            raise InvalidConfig(
                message(where, f"the environment {environment.name}", f"this learner takes {kind}",
                        "Take one that suits: bc, iql, odice and pa_rl take both")
            )  # fmt: skip


class Softly(OfflineLearner):
    """Acts by a policy with a likelihood, `F.actor.params` (`parts.Soft`)."""

    likelihood: ClassVar[bool] = True

    def act(self, environment, F, memory, obs, key):
        return parts.best_action(environment, F.actor.params, obs), memory

    def log_prob(self, environment, F, obs, action):
        return parts.log_likelihood(environment, F.actor.params, obs, action)


class Directly(OfflineLearner):
    """Acts by a network of actions, `F.actor.params`, without noise."""

    discrete: ClassVar[bool | None] = False

    def act(self, environment, F, memory, obs, key):
        return parts.decoded(environment.action, parts.steered(environment, F.actor.params, obs)), memory


def learn(
    learner: OfflineLearner, environment: Environment, bank: Bank, F: Any, updates: int, batch: int, gamma: Any, key: Array,
    begin: Any = 0,
) -> Any:  # fmt: skip
    """So many updates in one scan; traceable.

    Args:
        begin: number of the first update.
    """
    def step(F, k):
        k_rows, k_update = jax.random.split(jax.random.fold_in(key, k))
        return learner.update(environment, F, draw(bank, batch, learner.window, k_rows), gamma, k, k_update), None

    return jax.lax.scan(step, F, begin + jnp.arange(updates))[0]
