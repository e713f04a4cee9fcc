"""SALT: steps that several trajectories share get the average of their advantages."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status, TensorComponent
from bilevel_rl.policy_gradient.credit.group_normalised import GroupNorm
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import Turns, label, segment_mean
from bilevel_rl.policy_gradient.setting import ONE_TURN, Setting


@dataclasses.dataclass(frozen=True)
class TrajectoryGraph(Credit):
    r"""Merge identical steps (state and action) of a prompt's trajectories; a merged step gets the mean
    advantage.

    $$A'_s = \frac{1}{|\mathcal M(s)|}\sum_{s' \in \mathcal M(s)} A_{s'}, \qquad
      \mathcal M(s) = \text{steps of the same prompt with the state and action of } s$$

    Args:
        inner: the trajectory-level credit rule.

    References:
        SALT: Step-level Advantage Assignment for Long-horizon Agents via Trajectory Graph, arXiv
            2510.20022. Averaging is
        SEEN (secondary wording); the merge rule by (state, action) is INFERRED. Cost: one sort of the steps.
    """

    inner: TensorComponent = GroupNorm()

    card: ClassVar[Card] = Card(
        name="salt",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("group", "turn", "state_key", "action_key"),
        source="SALT: Step-level Advantage Assignment via Trajectory Graph, arXiv 2510.20022",
        status=Status.INFERRED,
        number=56,
        cost="O(NT) + a sort of the steps",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_TURN if setting.turns is False else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        state, action = self.card.take(batch, "state_key", "action_key")
        advantage = self.inner(batch)
        turns = Turns.of(batch)
        valid = turns.valid
        group = batch.group[:, None].expand_as(valid)[valid]
        merged, count = label(group, turns.at_first(state)[valid], turns.at_first(action)[valid])
        own = turns.mean(advantage)
        shift = torch.zeros_like(own)
        shift[valid] = segment_mean(own[valid], merged, count)[merged] - own[valid]
        # an equal mean is an exact zero shift, so that unshared steps keep their advantage to the bit
        return advantage + turns.spread(shift)
