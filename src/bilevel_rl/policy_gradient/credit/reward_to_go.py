"""Reward to go, with an optional baseline from the other responses to the same prompt."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot
from bilevel_rl.policy_gradient.credit.gae import returns_to_go
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import (
    label,
    segment_size,
    segment_sum,
)


@dataclasses.dataclass(frozen=True)
class RewardToGo(Credit):
    r"""$A_{i,t} = \sum_{s\ge t}\gamma^{s-t} r_{is} - b_i$, b the mean total reward of the others of the
    prompt (or 0).

    For rewards paid along the way (marginal gains, partial credit, KL a token).

    Args:
        gamma: discount a token.
        baseline: subtract the leave-one-out mean of the totals; independent of the response, so unbiased.

    References:
        Textbook (policy-gradient theorem).
    """

    gamma: float = 1.0
    baseline: bool = True

    card: ClassVar[Card] = Card(
        name="reward_to_go",
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        needs=("reward", "group"),
        source="textbook",
        cost="O(NT), T sequential steps",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        self.card.require(batch)
        go = returns_to_go(batch, self.gamma)
        if not self.baseline:
            return go
        index, count = label(batch.group)
        size = segment_size(index, count, go.dtype)[index]
        others = (segment_sum(batch.score, index, count)[index] - batch.score) / (size - 1).clamp(min=1)
        return torch.where(batch.mask, go - torch.where(size > 1, others, 0)[:, None], 0)
