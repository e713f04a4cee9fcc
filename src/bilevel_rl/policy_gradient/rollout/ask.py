"""`RolloutAsk` and `RolloutPlan`: what the rollout slot may know before generation, and what it asks for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

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
    """

    candidates: Callable[[int], Tensor]
    starts: int
    group: int
    value: Tensor | None = None
    iteration: int = 0

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
    """

    start: Tensor
    attempts: int = 0
    spare: Tensor = dataclasses.field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    @classmethod
    def plain(cls, ask: RolloutAsk) -> RolloutPlan:
        """Every start in line, `group` rows each.

        Example:
            >>> RolloutPlan.plain(RolloutAsk(torch.arange, starts=2, group=2)).start.tolist()
            [0, 0, 1, 1]
        """
        return cls(ask.candidates(ask.starts).repeat_interleave(ask.group))


def planned(rollout: tuple[Any, ...], ask: RolloutAsk) -> RolloutPlan:
    """The plan after every component of the slot, in order."""
    plan = RolloutPlan.plain(ask)
    for component in rollout:
        plan = component(ask, plan)
    return plan
