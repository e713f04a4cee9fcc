"""ADHint's rollout: some rows of a start begin with a part of its solution, the longer the harder the start."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan
from bilevel_rl.policy_gradient.rollout.writing import Writer, Written
from bilevel_rl.policy_gradient.segments import label, rank_in_segment
from bilevel_rl.policy_gradient.weigh.hints import hint_length


@dataclasses.dataclass(frozen=True)
class Hint:
    """The last rows of each start go on from the first tokens of its solution; a start without one gets no hint.

    Credit and weights are `adhint_credit` and `adhint_weight`. Rates of success are remembered of rows without a hint.

    Args:
        share: of a start's rows, with a hint.
        largest: share of the solution that is given for a start that is never solved.

    References:
        ADHint: Adaptive Hints with Difficulty Priors for Reinforcement Learning. In the spirit of: INFERRED.
    """

    share: float = 0.5
    largest: float = 0.8

    card: ClassVar[Card] = Card(
        name="hint",
        slot=Slot.ROLLOUT,
        effect=Effect.CHANGES,
        needs=("prompt_value", "demonstrations"),
        gives=("hint", "hinted"),
        group=2,
        source="ADHint: Adaptive Hints with Difficulty Priors",
        status=Status.INFERRED,
        number=45,
    )

    begins: ClassVar[bool] = True  # rows; others may only go on from them

    def __post_init__(self) -> None:
        for name in ("share", "largest"):
            if not 0 <= getattr(self, name) <= 1:
                raise InvalidConfig(message(f"Hint.{name}", getattr(self, name), "a share lies in [0, 1]", "Correct it"))

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan as it is."""
        return plan

    def write(self, writer: Writer, ask: RolloutAsk, plan: RolloutPlan, written: Written | None) -> Written:
        """Rows with `hint` [N, T] and `hinted` [N]; what was written before is not used."""
        index, count = label(plan.start)
        rows = torch.bincount(index, minlength=count)[index]
        rank = rank_in_segment(-torch.arange(len(index)), index)
        asked = rank >= rows - torch.floor(self.share * rows + 1e-9).long()
        solutions = [writer.shown(start) for start in plan.start.tolist()]
        size = torch.tensor([len(one) for one in solutions])
        value = torch.full((len(index),), 0.5) if ask.value is None else ask.value.cpu()[plan.start]
        given = torch.where(asked, hint_length(value, size, self.largest), 0)
        begin = Written.given(plan.start, [one[:n] for one, n in zip(solutions, given.tolist(), strict=True)])
        whole = writer.write(plan.start, begin, given)
        return whole.knowing(hint=torch.arange(whole.width) < given[:, None], hinted=given > 0)
