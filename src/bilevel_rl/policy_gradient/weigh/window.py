"""T-PPO's windows: a response that is written over several iterations teaches each of its tokens once."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status


@dataclasses.dataclass(frozen=True)
class Window:
    r"""Weight 1 on the tokens written since the last iteration, 0 on those that were trained on before.

    $$w_{it} = \mathbb 1\{t \ge s_i\}$$

    with $s_i$ the extra `window_start` [N]: the column where this iteration's window of response i begins.
    Use it with the credit rule `truncated_gae`; the critic learns from finished responses only
    (`finished_only`).

    References:
        Truncated Proximal Policy Optimization (T-PPO). In the spirit of: the idea is SEEN in the abstract,
        the details are INFERRED.
    """

    card: ClassVar[Card] = Card(
        name="window",
        slot=Slot.WEIGH,
        effect=Effect.CHANGES,
        needs=("window_start",),
        scope=Scope.RESPONSE,
        source="Truncated Proximal Policy Optimization",
        status=Status.INFERRED,
        number=46,
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] weights, 0 or 1."""
        (start,) = self.card.take(batch, "window_start")
        column = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        return (batch.mask & (column >= start[:, None])).to(batch.reward.dtype)
