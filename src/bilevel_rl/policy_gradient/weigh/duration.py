"""Duration-aware weights: undo the over-representation of quick actions in asynchronous collection."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.segments import (
    masked_mean,
)


@dataclasses.dataclass(frozen=True)
class Duration:
    r"""Each sample counts as long as it took: $w_i = \Delta t_i / \overline{\Delta t}$.

    When workers run side by side, an action that takes $\Delta t$ arrives at a rate proportional to
    $1/\Delta t$; the weight makes the gradient that of the policy again.

    References:
        Reinforcement Learning for Machine Learning Engineering Agents. SEEN (paper notes). Keeps the
        objective.
    """

    card: ClassVar[Card] = Card(
        name="duration",
        slot=Slot.WEIGH,
        effect=Effect.KEEPS,
        needs=("duration",),
        scope=Scope.BATCH,
        source="Reinforcement Learning for Machine Learning Engineering Agents",
        status=Status.SEEN,
        number=15,
        note="the mean duration is the batch's own (bias O(1/N))",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] weights, mean 1 over responses (or over action tokens when durations are by token)."""
        (duration,) = self.card.take(batch, "duration")
        if duration.ndim == 1:
            total = duration.sum() if len(batch) else duration.new_zeros(())
            mean = total / max(len(batch), 1)
            weight = torch.where(mean > 0, duration / torch.where(mean > 0, mean, 1), 1)
            return batch.spread(weight)
        mean = masked_mean(duration, batch.mask)
        return torch.where(
            batch.mask & (mean > 0), duration / torch.where(mean > 0, mean, 1), batch.mask.to(duration)
        )
