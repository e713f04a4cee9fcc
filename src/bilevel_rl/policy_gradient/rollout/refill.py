"""DAPO's dynamic sampling as it is meant: groups that say nothing are replaced by others, and not only dropped."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan


@dataclasses.dataclass(frozen=True)
class Refill:
    """Write the rows of groups whose rewards are all equal again, from the next starts in line.

    What is still without variance after the last attempt stays; `select=dynamic_sampling` drops it. The tokens of
    what was thrown away count as samples.

    Args:
        attempts: at most.

    References:
        Yu et al., DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476, section 3.2.
        Classical.
    """

    attempts: int = 2

    card: ClassVar[Card] = Card(
        name="refill",
        slot=Slot.ROLLOUT,
        by_prompt=True,
        effect=Effect.RESCALES,
        group=2,
        scope=Scope.BATCH,
        source="DAPO, arXiv 2503.14476",
        cite=("yu2025dapo",),
        cost="the tokens of the groups that are replaced",
        note="the mixture over prompts moves to the undecided ones",
    )

    one_policy: ClassVar[bool] = True  # a second policy would be refilled from other starts

    def __post_init__(self) -> None:
        if self.attempts < 1:
            raise InvalidConfig(
                message("Refill.attempts", self.attempts, "at least 1", "Raise it, or leave it out")
            )

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan with starts to spare."""
        line = ask.candidates((self.attempts + 1) * ask.starts)
        return dataclasses.replace(plan, attempts=self.attempts, spare=line[ask.starts :])


def silent(reward: torch.Tensor, start: torch.Tensor) -> list[list[int]]:
    """Rows of each group whose rewards are all equal.

    Example:
        >>> silent(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([7, 7, 8, 8]))
        [[0, 1]]
    """
    groups: dict[int, list[int]] = {}
    for row, number in enumerate(start.tolist()):
        groups.setdefault(number, []).append(row)
    return [rows for rows in groups.values() if bool((reward[rows] == reward[rows[0]]).all())]
