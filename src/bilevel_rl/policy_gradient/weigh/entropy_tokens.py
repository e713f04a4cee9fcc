"""D3S on tokens: keep those with a large product of advantage and entropy."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.setting import Setting


@dataclasses.dataclass(frozen=True)
class EntropyTokens:
    r"""Weight 1 on the top $\lceil K N\rceil$ action tokens by $|A_t| H_t$, 0 on the rest.

    The share goes linearly from `start` to `end` with `Batch.progress`; 1 keeps all. Ties at the limit are
    broken by row and position of the trajectory ids, so that exactly that many are kept.

    Args:
        start, end: shares K at the beginning and at the end of training.

    References:
        Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy
        Optimization (D3S). SEEN (abstract; the schedule in paper notes). The paper's defaults aren't
        established; these are ours.
    """

    start: float = 0.2
    end: float = 1.0

    card: ClassVar[Card] = Card(
        name="d3s_tokens",
        slot=Slot.WEIGH,
        effect=Effect.CHANGES,
        needs=("advantage", "entropy"),
        scope=Scope.BATCH,
        source="Learning More with Less: D3S",
        status=Status.SEEN,
        number=1,
        cost="O(NT) + a sort of the tokens",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return "its share is 1 throughout. Lower start" if self.start == self.end == 1 else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] weights, 0 or 1."""
        advantage, entropy = self.card.take(batch, "advantage", "entropy")
        share = (1 - batch.progress) * self.start + batch.progress * self.end
        score = (advantage.abs() * entropy.detach())[batch.mask]
        number = min(math.ceil(share * score.numel() - 1e-9), score.numel())
        kept = torch.zeros_like(score, dtype=torch.bool)
        if number:
            limit = score.kthvalue(score.numel() - number + 1).values
            kept, ties = score > limit, torch.nonzero(score == limit)[:, 0]
            # ties follow the trajectory ids, not the order of rows
            row = batch.trajectory[:, None].expand_as(batch.mask)[batch.mask]
            ties = ties[torch.argsort(row[ties], stable=True)]
            kept[ties[: number - int(kept.sum())]] = True
        weight = torch.zeros_like(advantage)
        weight[batch.mask] = kept.to(weight.dtype)
        return weight
