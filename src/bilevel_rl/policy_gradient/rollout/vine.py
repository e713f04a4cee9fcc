"""Poly-PPO's vine: the rows of a start go on from a state that the policy itself has come to."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan, at_least
from bilevel_rl.policy_gradient.rollout.writing import Writer, Written
from bilevel_rl.policy_gradient.segments import label, rank_in_segment, uniform_hash


@dataclasses.dataclass(frozen=True)
class Vine:
    """One row a start is written and cut at random; all rows of the start go on from there, `size` of them to a set.

    The shared beginning is not learned from: `weigh=window` leaves out what stands before `window_start`.

    Args:
        size: rows a set.
        seed: of where rows are cut.

    References:
        Polychromic Objectives for Reinforcement Learning. SEEN (paper notes); one state a start (ours: then every
        comparison is between sets that began in one state).
    """

    size: int = 4
    seed: int = 0

    card: ClassVar[Card] = Card(
        name="vine",
        slot=Slot.ROLLOUT,
        effect=Effect.KEEPS,
        gives=("set_id", "window_start"),
        group=2,
        source="Polychromic Objectives for Reinforcement Learning",
        status=Status.SEEN,
        number=8,
        cost="one more row a start",
    )

    begins: ClassVar[bool] = True  # rows; others may only go on from them

    def __post_init__(self) -> None:
        at_least("Vine.size", self.size, 1)

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan as it is."""
        return plan

    def write(self, writer: Writer, ask: RolloutAsk, plan: RolloutPlan, written: Written | None) -> Written:
        """Rows from the vine's states, with `set_id` and `window_start`; what was written before is not used."""
        starts, index = torch.unique(plan.start, return_inverse=True)
        trunk = writer.write(starts)
        share = uniform_hash(self.seed, ask.iteration, starts)
        own = trunk.mask.long().cumsum(1)  # cut before one of the policy's own tokens, never inside an observation
        wanted = (share * own[:, -1]).long()
        cut = ((own == wanted[:, None] + 1) & trunk.mask).long().argmax(1)
        rows = writer.write(plan.start, trunk.rows(index), cut[index])
        rank = rank_in_segment(-torch.arange(len(plan.start)), index)
        sets, _ = label(index, rank // self.size)
        return rows.knowing(set_id=sets, window_start=cut[index])
