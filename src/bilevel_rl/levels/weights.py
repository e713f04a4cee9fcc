"""Trained numbers by role and name: listed, saved whole, loaded back; an engine and the roles of a language model alike."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.pieces import Pieces


class Weights(abc.ABC):
    """Whoever knows which numbers train.

    Attributes:
        names: roles that train, in a fixed order.
        pieces: where the numbers are; all of them here, where nothing else is said.
    """

    names: tuple[str, ...]
    pieces: Pieces = Pieces()

    @abc.abstractmethod
    def parameters(self, role: str) -> Mapping[str, nn.Parameter]:
        """A role's trained parameters by name, in a fixed order."""

    def trained_parameters(self) -> dict[str, nn.Parameter]:
        """Every trained parameter by `role/name`, each as this process holds it."""
        return {f"{role}/{name}": p for role in self.names for name, p in self.parameters(role).items()}

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every trained tensor by `role/name`, whole; every process must go through all of them."""
        for key, p in self.trained_parameters().items():
            yield key, self.pieces.whole(p, p.detach())

    def state(self) -> dict[str, Tensor]:
        """`whole_weights`, all at once."""
        return dict(self.whole_weights())

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Copy `state` back.

        Raises:
            InvalidConfig: names or shapes that are not this model's.
        """
        pieces, own = self.pieces, self.trained_parameters()
        odd = sorted(own.keys() ^ state.keys()) or [k for k, p in own.items() if pieces.shape(p) != state[k].shape]
        if odd:
            raise InvalidConfig(
                message("checkpoint", f"weights that do not fit ({odd[0]} and {len(odd) - 1} more)",
                        "a checkpoint belongs to one model and one backend", "Give the model that the run began with")
            )  # fmt: skip
        for key, parameter in own.items():
            parameter.copy_(pieces.piece(parameter, state[key]))
