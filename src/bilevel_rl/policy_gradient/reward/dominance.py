"""R3's ranking reward: failed or cut responses are ranked by the shape of their entropies."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch, paid_at_end
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.segments import (
    label,
    masked_mean,
    members,
    segment_size,
)


def entropy_dominance(peak: Tensor, overall: Tensor, group: Tensor) -> Tensor:
    r"""[N]: how many responses of its prompt each one dominates.

    To dominate is to have a higher peak entropy and a lower overall entropy, both strictly: a strict
    partial order.

    Example:
        >>> peak, overall, group = torch.tensor([2.0, 1.0]), torch.tensor([0.1, 0.5]), torch.tensor([0, 0])
        >>> entropy_dominance(peak, overall, group).tolist()
        [1, 0]
    """
    index, count = label(group)
    row, real = members(index, count)
    p, o = peak[row], overall[row]
    above = (p[:, :, None] > p[:, None, :]) & (o[:, :, None] < o[:, None, :])
    above = above & real[:, :, None] & real[:, None, :]
    out = torch.zeros(len(peak), dtype=torch.long, device=peak.device)
    out[row[real]] = above.sum(2)[real]
    return out


@dataclasses.dataclass(frozen=True)
class RankingReward:
    r"""A small reward for failed or cut responses, by rank: $R_{max}(1 - k/(n-1))$ for rank k (0 best) of n.

    i ranks above j when it dominates more: its peak entropy (mean of the top share p of its tokens) is
    higher and its mean entropy lower. Equal counts share the better rank.

    Args:
        largest: $R_{max}$.
        share: p of the tokens that make the peak, at least one.
        threshold: responses with at most this reward have failed.

    References:
        R3: Replay, Reflection, and Ranking Rewards for LLM Reinforcement Learning, arXiv 2601.19620.
            SEEN; the published values
        aren't recorded here, the defaults are ours.
    """

    largest: float = 0.1
    share: float = 0.1
    threshold: float = 0.0

    card: ClassVar[Card] = Card(
        name="ranking_reward",
        slot=Slot.REWARD,
        effect=Effect.CHANGES,
        needs=("reward", "group", "entropy"),
        source="R3: Replay, Reflection, and Ranking Rewards, arXiv 2601.19620",
        status=Status.SEEN,
        number=49,
        cost="O(NT log T)",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T, K + 1] rewards."""
        (entropy,) = self.card.take(batch, "entropy")
        entropy = entropy.detach()
        failed = (batch.score <= self.threshold) | batch.truncated
        part, count = label(batch.group, failed.long())
        peak, overall = peak_entropy(entropy, batch.mask, self.share), masked_mean(entropy, batch.mask, 1)
        wins = entropy_dominance(peak, overall, part)
        size = segment_size(part, count, entropy.dtype)[part]
        better = better_than(wins, part)
        value = self.largest * (1 - better.to(entropy.dtype) / (size - 1).clamp(min=1))
        value = torch.where(failed, value, 0).to(batch.reward.dtype)
        return torch.cat([batch.reward, paid_at_end(batch.mask, value[:, None])], -1)


def better_than(wins: Tensor, group: Tensor) -> Tensor:
    """[N]: how many of its group have strictly more wins."""
    index, count = label(group)
    row, real = members(index, count)
    more = (wins[row][:, None, :] > wins[row][:, :, None]) & real[:, :, None] & real[:, None, :]
    out = torch.zeros_like(wins)
    out[row[real]] = more.sum(2)[real]
    return out


def peak_entropy(entropy: Tensor, mask: Tensor, share: float) -> Tensor:
    """[N]: mean of the max(floor(share L), 1) largest entropies of each response's L action tokens; 0 for
    none.
    """
    if not mask.shape[1]:
        return entropy.new_zeros(len(entropy))
    ordered = torch.where(mask, entropy, -torch.inf).sort(1, descending=True).values
    number = (mask.sum(1) * share).floor().clamp(min=1)
    inside = torch.arange(mask.shape[1], device=mask.device) < number[:, None]
    inside = inside & ordered.isfinite()
    return masked_mean(ordered, inside, 1)
