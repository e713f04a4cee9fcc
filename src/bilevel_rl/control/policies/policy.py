"""What a law of actions offers, whatever its family."""

from __future__ import annotations

import abc

import equinox as eqx
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Box, Discrete


class Policy(eqx.Module):
    """A family of action laws, told apart by a network's outputs. All methods take one state's.

    Attributes:
        space: of actions.
    """

    space: Box | Discrete = eqx.field(static=True)

    @property
    @abc.abstractmethod
    def outputs(self) -> int:
        """How many numbers the network gives for a state."""

    @abc.abstractmethod
    def sample(self, out: Float[Array, " q"], key: Array) -> tuple[Array, Float[Array, ""]]:
        """An action and the logarithm of its probability or density, differentiable in `out` where actions are vectors."""

    @abc.abstractmethod
    def log_prob(self, out: Float[Array, " q"], action: Array) -> Float[Array, ""]:
        """Of a given action."""

    @abc.abstractmethod
    def mode(self, out: Float[Array, " q"]) -> Array:
        """The greedy action."""

    @abc.abstractmethod
    def encoded(self, action: Array) -> Float[Array, " e"]:
        """The action as a critic's network sees it."""
