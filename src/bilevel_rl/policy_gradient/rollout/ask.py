"""`RolloutAsk` and `RolloutPlan`: what the rollout slot may know before generation, and what it asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.moved import renamed

__getattr__ = renamed("bilevel_rl.policy_gradient.rollout.ask", Ask="RolloutAsk", Plan="RolloutPlan")


@dataclasses.dataclass(frozen=True)
class RolloutAsk:
    """What is known before an iteration generates anything.

    Attributes:
        candidates: number -> [number] starts (prompts) that stand in line for this iteration, by their numbers; the
            first ones are those that would be taken without a choice, and a number may come twice.
        starts: of an iteration.
        group: rows a start.
        value: [Q] remembered mean reward of every start; None where nothing remembers it.
        iteration: k.
        memory: what stateful components remember, by component name.
        features: [n] starts -> [n, D] what is known of them before anything is written; None where nothing is.
    """

    candidates: Callable[[int], Tensor]
    starts: int
    group: int
    value: Tensor | None = None
    iteration: int = 0
    memory: Mapping[str, Mapping[str, Tensor]] = dataclasses.field(default_factory=dict)
    features: Callable[[Tensor], Tensor] | None = None

    @property
    def rows(self) -> int:
        """Rows of an iteration, whatever is chosen."""
        return self.starts * self.group


@dataclasses.dataclass(frozen=True)
class RolloutPlan:
    """What to generate.

    Attributes:
        start: [N] the start of each row; always as many rows as an iteration has.
        attempts: how often rows whose group says nothing are written again, from other starts.
        spare: [attempts x starts] starts for them, in order.
        writes: components that generate in a way of their own, each with what it may know; (): every row from its
            beginning to its end.
    """

    start: Tensor
    attempts: int = 0
    spare: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    writes: tuple[tuple[Any, RolloutAsk], ...] = ()

    @classmethod
    def plain(cls, ask: RolloutAsk) -> RolloutPlan:
        """Every start in line, `group` rows each.

        Example:
            >>> RolloutPlan.plain(RolloutAsk(torch.arange, starts=2, group=2)).start.tolist()
            [0, 0, 1, 1]
        """
        return cls(ask.candidates(ask.starts).repeat_interleave(ask.group))


def planned(rollout: Sequence[tuple[Any, RolloutAsk]]) -> RolloutPlan:
    """The plan after every component of the slot, in order, each with what it may know."""
    plan = RolloutPlan.plain(rollout[0][1])
    for component, ask in rollout:
        plan = component(ask, plan)
    writes = tuple((component, ask) for component, ask in rollout if hasattr(component, "write"))
    return dataclasses.replace(plan, writes=writes)


def at_least(where: str, value: int, least: int) -> None:
    """Raise `InvalidConfig` for an option that is smaller."""
    if value < least:
        raise InvalidConfig(message(where, value, f"at least {least}", "Raise it"))
