"""Choosing starts before they cost a token: PCL's nearest to one half, V0's rows where they promise contrast."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan, at_least
from bilevel_rl.policy_gradient.rollout.prompt_model import PromptModel
from bilevel_rl.policy_gradient.select.prompts import allocate, nearest_to


@dataclasses.dataclass(frozen=True)
class Nearest:
    r"""Of several candidates a start, generate for those whose remembered reward is nearest to $\tau$.

    $$|V(q) - \tau| \text{ smallest}, \qquad \tau = 0.5$$

    Args:
        candidates: a start that is generated; four are published.
        target: $\tau$, in units of reward.
        value: a model of V that is trained along (`prompt_model`), as published; None: the running mean of the start's
            past rewards, .5 where there is none yet.

    References:
        Prompt Curriculum Learning for Efficient LLM Post-Training. SEEN (paper notes).
    """

    candidates: int = 4
    target: float = 0.5
    value: PromptModel | None = None

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
        at_least("Nearest.candidates", self.candidates, 1)

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan with the starts chosen; a start is chosen once."""
        line = _distinct(ask.candidates(self.candidates * ask.starts))
        chosen = line[nearest_to(_value(ask, line, self.value), ask.starts, self.target)]
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
        value: as for `choose_nearest`.

    References:
        V0: A Generalist Value Model for Any Policy at State Zero, arXiv 2602.03584. The utility is SEEN (secondary).
    """

    candidates: int = 2
    smallest: int = 2
    value: PromptModel | None = None

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
        at_least("Spread.candidates", self.candidates, 1)
        at_least("Spread.smallest", self.smallest, 1)

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan with uneven groups."""
        most = max(ask.rows // self.smallest, 1)  # candidates that can have `smallest` rows
        line = _distinct(ask.candidates(self.candidates * ask.starts))[:most]
        smallest = min(self.smallest, ask.rows // len(line))
        rows = allocate(_value(ask, line, self.value), ask.rows, smallest, ask.rows)
        return dataclasses.replace(plan, start=line.repeat_interleave(rows))


def _value(ask: RolloutAsk, line: Tensor, model: PromptModel | None) -> Tensor:
    if model is not None and ask.features is not None:
        return model.predict(ask.memory.get(model.card.name) or model.init(), ask.features(line))
    return torch.full(line.shape, 0.5) if ask.value is None else ask.value.cpu()[line]


def _distinct(line: Tensor) -> Tensor:
    """Without repetitions, in the order of the line."""
    return torch.tensor(list(dict.fromkeys(line.tolist())), dtype=torch.long)
