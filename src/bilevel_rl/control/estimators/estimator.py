"""What an estimator of the hyper-gradient is: a strategy object that learns beside the follower."""

from __future__ import annotations

import abc
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers import Follower
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.control.replay import Rows


class Here(NamedTuple):
    """What is the same for a whole iteration.

    Attributes:
        problem, environment, follower: in 32 bits.
        x: [d] float32.
        tau: the temperature that the follower uses.
        w: penalty constant of the pairs, in units of reward over utility.
        lower, upper: discounts of follower and leader.
        cut: probability with which chains are begun anew after a step.
    """

    problem: ControlProblem
    environment: Environment
    follower: Follower
    x: Float[Array, " d"]
    tau: Float[Array, ""]
    w: Float[Array, ""]
    lower: Float[Array, ""]
    upper: Float[Array, ""]
    cut: Float[Array, ""]


class Direction(NamedTuple):
    r"""An estimate.

    Attributes:
        g: [d] of $\\nabla_x E_{d}[u]$ through the follower's answer: the leader wants to go along it.
        pull: [B, M, d] how the follower's log-probabilities answer to x, times the root of their weights, in states of its
            own; None where the estimator does not learn that.
    """

    g: Float[Array, " d"]
    pull: Float[Array, "B M d"] | None


class HyperGradient(eqx.Module):
    r"""Estimates how the leader's outcome moves with the follower's answer to x.

    For rewards of any form in x: only $\nabla_x r$ at the present x is used. What x does to the utility directly and to its
    own cost is the solver's to add.
    """

    name: ClassVar[str] = "estimator"
    references: ClassVar[tuple[str, ...]] = ()
    other_chains: ClassVar[bool] = False  # whether it walks chains of its own, as many as the follower has
    equal_discounts: ClassVar[bool] = False  # whether leader and follower must discount alike
    pulls: ClassVar[bool] = False  # whether it learns how the follower's answer moves with x
    scores: ClassVar[bool] = False  # whether it differentiates how likely the follower's own network makes actions

    @property
    def likelihoods(self) -> bool:
        """Whether it needs followers that say how likely an action is."""
        return self.scores

    @abc.abstractmethod
    def init(self, here: Here, F: Any, chains: int, key: Array) -> Any:
        """What it carries, before the first step: H."""

    def walk(self, here: Here, H: Any, F: Any, rows: Rows, keys: tuple[Array, Array]) -> tuple[Any, Any]:
        """After each step of the follower's chains.

        Args:
            rows: the newest transitions [N].
            keys: that of the follower's own step, for common numbers, and another.

        Returns:
            H, and the steps of its own chains (`walk.Seen`) or None.
        """
        return H, None

    def learn(self, here: Here, H: Any, F: Any, rows: Rows, keys: tuple[Array, Array]) -> Any:
        """After each update of the follower, from the same rows.

        Args:
            keys: that of the follower's own update, for common numbers, and another.
        """
        return H

    @abc.abstractmethod
    def estimate(self, here: Here, H: Any, F: Any, recent: Rows, key: Array) -> tuple[Any, Direction]:
        """When the leader moves.

        Args:
            recent: [R] the last transitions of the follower's own chains, oldest first.

        Returns:
            H, with what was gathered since the last estimate begun anew; and the estimate.
        """

    def check(self, problem: ControlProblem) -> None:
        """Raise `InvalidConfig` for settings that are not allowed."""


def forgetting(here: Here) -> Float[Array, ""]:
    """gamma_L / gamma_U, by which the past counts less where the leader's discount cuts chains; 0 at 0."""
    return here.lower / jnp.maximum(here.upper, 1e-8)


def slopes(here: Here, rows: Rows) -> Float[Array, "B d"]:
    """The derivative of each row's reward in x."""
    one = lambda features: jax.grad(lambda x: jnp.asarray(here.problem.reward(x, features), jnp.float32))(here.x)  # noqa: E731
    return jax.vmap(one)(rows.features)


def rewards(here: Here, rows: Rows) -> Float[Array, " B"]:
    """What each row pays under the present x."""
    return jax.vmap(lambda f: here.problem.reward(here.x, f))(rows.features).astype(jnp.float32)


def utilities(here: Here, rows: Rows) -> Float[Array, " B"]:
    """What each row is worth to the leader under the present x."""
    return jax.vmap(lambda t: here.problem.utility(here.x, t))(rows.t).astype(jnp.float32)
