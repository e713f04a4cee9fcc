"""Choosing starts before they cost a token: PCL's nearest to one half, V0's rows where they promise contrast."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan
from bilevel_rl.policy_gradient.select.prompts import allocate, nearest_to


@dataclasses.dataclass(frozen=True)
class Nearest:
    r"""Of several candidates a start, generate for those whose remembered reward is nearest to $\tau$.

    $$|V(q) - \tau| \text{ smallest}, \qquad \tau = 0.5$$

    Args:
        candidates: a start that is generated; four are published.
        target: $\tau$, in units of reward.

    References:
        Prompt Curriculum Learning for Efficient LLM Post-Training. SEEN (paper notes). The value is the running mean
        of past rewards of the start, .5 where there is none yet: the published one is a trained model.
    """

    candidates: int = 4
    target: float = 0.5

    card: ClassVar[Card] = Card(
        name="choose_nearest",
        slot=Slot.ROLLOUT,
        by_prompt=True,
        effect=Effect.RESCALES,
        needs=("prompt_value",),
        scope=Scope.BATCH,
        source="Prompt Curriculum Learning for Efficient LLM Post-Training",
        status=Status.SEEN,
        number=20,
        note="no token is spent on what is not chosen",
    )

    def __post_init__(self) -> None:
        _at_least("Nearest.candidates", self.candidates, 1)

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan with the starts chosen; a start is chosen once."""
        line = _distinct(ask.candidates(self.candidates * ask.starts))
        chosen = line[nearest_to(_value(ask, line), ask.starts, self.target)]
        # fewer starts than an iteration has: they take turns
        turns = chosen[torch.arange(ask.starts) % len(chosen)]
        return dataclasses.replace(plan, start=turns.repeat_interleave(ask.group))


@dataclasses.dataclass(frozen=True)
class Spread:
    r"""As many rows as an iteration has, spread over candidates by how much contrast they promise.

    $$\max_B \sum_q B_q (1 - p_q)\left[1 - (1 - p_q)^{B_q - 1}\right], \qquad \sum_q B_q = N$$

    Args:
        candidates: a start of the plain plan.
        smallest: rows of a candidate at least; the rest goes where it promises most.

    References:
        V0: A Generalist Value Model for Any Policy at State Zero, arXiv 2602.03584. The utility is SEEN (secondary);
        the value is the running mean of past rewards (the published one is a trained model: INFERRED).
    """

    candidates: int = 2
    smallest: int = 2

    card: ClassVar[Card] = Card(
        name="spread_budget",
        slot=Slot.ROLLOUT,
        by_prompt=True,
        effect=Effect.RESCALES,
        needs=("prompt_value",),
        scope=Scope.BATCH,
        source="V0: A Generalist Value Model for Any Policy at State Zero, arXiv 2602.03584",
        status=Status.SEEN,
        number=10,
    )

    def __post_init__(self) -> None:
        _at_least("Spread.candidates", self.candidates, 1)
        _at_least("Spread.smallest", self.smallest, 1)

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan with uneven groups."""
        most = max(ask.rows // self.smallest, 1)  # candidates that can have `smallest` rows
        line = _distinct(ask.candidates(self.candidates * ask.starts))[:most]
        smallest = min(self.smallest, ask.rows // len(line))
        rows = allocate(_value(ask, line), ask.rows, smallest, ask.rows)
        return dataclasses.replace(plan, start=line.repeat_interleave(rows))


def _value(ask: RolloutAsk, line: Tensor) -> Tensor:
    return torch.full(line.shape, 0.5) if ask.value is None else ask.value.cpu()[line]


def _distinct(line: Tensor) -> Tensor:
    """Without repetitions, in the order of the line."""
    return torch.tensor(list(dict.fromkeys(line.tolist())), dtype=torch.long)


def _at_least(where: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidConfig(message(where, value, f"at least {least}", "Raise it"))
