"""Poly-PPO: a set of responses is rewarded for being good and different, and shares one advantage."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import (
    label,
    rank_in_segment,
    segment_mean,
    segment_size,
    segment_sum,
)
from bilevel_rl.policy_gradient.setting import ONE_ANSWER, Setting


def sets_of(group: Tensor, trajectory: Tensor, size: int) -> Tensor:
    """[N] set numbers: each prompt's responses, in the order of their trajectory ids, `size` to a set."""
    index, _ = label(group)
    rank = rank_in_segment(-trajectory, index)
    return label(index, rank // size)[0]


def distinct_share(signature: Tensor, sets: Tensor) -> Tensor:
    """[N]: number of distinct signatures in each response's set, over the size of the set."""
    index, count = label(sets)
    pair, pairs = label(index, signature)
    dtype = torch.float64
    share = 1 / segment_size(pair, pairs, dtype)[pair]
    return segment_sum(share, index, count)[index] / segment_size(index, count, dtype)[index]


@dataclasses.dataclass(frozen=True)
class Polychromic(Credit):
    r"""The set objective: mean reward times diversity, minus what the prompt's other sets achieve.

    $$f(\tau_{1:n}) = \left(\tfrac1n\sum_i R(\tau_i)\right) d(\tau_{1:n}), \qquad
      A = f - \text{mean of } f \text{ over the other sets of the prompt}$$

    d is the share of distinct signatures (field `answer`). Sets are the extra `set_id` [N] of a vine
    sampler, else the prompt's responses in order, n at a time. With one set a prompt there is nothing to
    compare with: advantage 0.

    Args:
        size: n.
        additive: weight of $\bar R + \alpha d$ in place of the product (a third-party replica does that);
            None: the product, as in the paper.

    References:
        Polychromic Objectives for Reinforcement Learning. SEEN (paper notes). Changes the objective on
        purpose: to that of sets. Cost: a sort.
    """

    size: int = 4
    additive: float | None = None

    card: ClassVar[Card] = Card(
        name="polychromic",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "group", "answer"),
        group=2,
        source="Polychromic Objectives for Reinforcement Learning",
        status=Status.SEEN,
        number=8,
        cost="O(NT) + a sort of the responses",
    )

    @property
    def smallest_group(self) -> int:
        """Two sets of responses a prompt."""
        return 2 * self.size

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_ANSWER if setting.answers == 1 else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a set."""
        (answer,) = self.card.take(batch, "answer")
        given = batch.extras.get("set_id")
        sets, count = label(
            batch.group, sets_of(batch.group, batch.trajectory, self.size) if given is None else given
        )
        mean = segment_mean(batch.score, sets, count)
        diversity = segment_mean(distinct_share(answer, sets).to(mean.dtype), sets, count)
        f = mean * diversity if self.additive is None else mean + self.additive * diversity
        # leave-one-out over the sets of a prompt: number each set's prompt, then compare
        index, prompts = label(batch.group)
        prompt = torch.zeros(count, dtype=torch.long, device=index.device).index_copy(0, sets, index)
        number = segment_size(prompt, prompts, f.dtype)[prompt]
        others = (segment_sum(f, prompt, prompts)[prompt] - f) / (number - 1).clamp(min=1)
        return batch.spread(torch.where(number > 1, f - others, 0)[sets])
