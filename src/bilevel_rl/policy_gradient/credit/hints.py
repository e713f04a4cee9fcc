"""ADHint's credit: hinted and unhinted responses are compared apart, hinted ones scaled by relative
difficulty.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.credit.group_normalised import group_deviation
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import (
    label,
    segment_sum,
)


@dataclasses.dataclass(frozen=True)
class HintCredit(Credit):
    r"""Group-normalised advantages among hinted and among unhinted responses, hinted ones times how hard
    they had it.

    $$A_i = \frac{R_i - \bar R_c}{\sigma_c + \epsilon}\cdot\begin{cases}1 & \text{unhinted}\\
      p_{unhinted}/p_{hinted} & \text{hinted}\end{cases}$$

    with c the class of i, and p the shares solved, smoothed by one success and one failure (ours: hard
    prompts have $p_{unhinted} = 0$, and would learn nothing), the ratio at most 1.

    Args:
        threshold: a response is solved when its reward is above this.
        eps: added to the standard deviation.

    References:
        ADHint: Adaptive Hints with Difficulty Priors for Reinforcement Learning. In the spirit of: INFERRED.
    """

    threshold: float = 0.5
    eps: float = 1e-4

    card: ClassVar[Card] = Card(
        name="adhint_credit",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "group", "hinted"),
        group=2,
        source="ADHint: Adaptive Hints with Difficulty Priors",
        status=Status.INFERRED,
        number=45,
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a response."""
        (hinted,) = self.card.take(batch, "hinted")
        hinted = hinted.bool()
        part, _ = label(batch.group, hinted.long())
        deviation = group_deviation(batch.score, part, True, self.eps, 1)
        index, count = label(batch.group)
        solved = (batch.score > self.threshold).to(deviation.dtype)

        def rate(rows: Tensor) -> Tensor:
            rows = rows.to(deviation.dtype)
            return (segment_sum(rows * solved, index, count) + 1) / (segment_sum(rows, index, count) + 2)

        relative = (rate(~hinted) / rate(hinted)).clamp(max=1)[index]
        return batch.spread(torch.where(hinted, relative, 1) * deviation)
