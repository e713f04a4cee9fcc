"""Self-play preference rewards: the share of the prompt's other responses that a response beats."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch, paid_at_end
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.segments import (
    label,
    members,
)

Preference = Callable[[Batch, Tensor, Tensor], Tensor]


def by_score(batch: Batch, i: Tensor, j: Tensor) -> Tensor:
    """Preference of rows i over rows j: 1 for the larger reward, one half for equal ones."""
    one, two = batch.score[i], batch.score[j]
    return torch.where(one == two, 0.5, (one > two).to(batch.reward.dtype)).to(batch.reward.dtype)


def bradley_terry(batch: Batch, i: Tensor, j: Tensor) -> Tensor:
    """Preference of rows i over rows j: the logistic function of the difference of rewards."""
    return torch.sigmoid(batch.score[i] - batch.score[j])


@dataclasses.dataclass(frozen=True)
class WinRate:
    r"""The reward is the mean preference over the other responses to the same prompt.

    $$r_i = \frac{1}{k-1}\sum_{j\ne i} P(y_i \succ y_j)$$

    For any preference with $P(a\succ b) + P(b\succ a) = 1$, transitive or not, the mean over a group is one
    half. Maximising it in self-play leads to the minimax winner.

    Args:
        prefer: (batch, rows i, rows j) -> probabilities of the same shape as i; any oracle.

    References:
        A Minimaximalist Approach to Reinforcement Learning from Human Feedback (self-play preference
        optimisation). SEEN (abstract). Cost: the pairs of each prompt.
    """

    prefer: Preference = by_score

    card: ClassVar[Card] = Card(
        name="win_rate",
        slot=Slot.REWARD,
        effect=Effect.KEEPS,
        needs=("reward", "group"),
        group=2,
        source="A Minimaximalist Approach to Reinforcement Learning from Human Feedback",
        status=Status.SEEN,
        number=50,
        cost="O(Nk)",
        note="of a preference game: the policy of a minimax winner, not the largest reward",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T, 1] rewards, in the place of the old ones."""
        self.card.require(batch)
        index, count = label(batch.group)
        row, real = members(index, count)
        i = row[:, :, None].expand(*row.shape, row.shape[1])
        j = row[:, None, :].expand_as(i)
        pair = real[:, :, None] & real[:, None, :] & (i != j)
        wins = torch.zeros(i.shape, dtype=batch.reward.dtype, device=row.device)
        wins[pair] = self.prefer(batch, i[pair], j[pair]).to(wins.dtype)
        number = pair.sum(2)
        rate = torch.where(number > 0, wins.sum(2) / number.clamp(min=1), 0.5).to(wins.dtype)
        out = wins.new_zeros(len(batch))
        out[row[real]] = rate[real]
        return paid_at_end(batch.mask, out[:, None])
