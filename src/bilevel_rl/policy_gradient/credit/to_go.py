"""Leave-one-out of what is still to come, token by token: the baseline knows how far the others have got."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot
from bilevel_rl.policy_gradient.credit.gae import returns_to_go
from bilevel_rl.policy_gradient.credit.leave_one_out import leave_one_out
from bilevel_rl.policy_gradient.segments import label, segment_size, segment_sum


def weighted_leave_one_out(values: Tensor, group: Tensor, weights: Tensor | None = None) -> Tensor:
    r"""$v_i - \sum_{j \ne i} \omega_j v_j / \sum_{j \ne i} \omega_j$ within each group.

    Args:
        values: [N] or [N, T].
        group: [N].
        weights: [N] positive; None: plain leave-one-out.

    Returns:
        The shape of `values`; values themselves for a group of one.
    """
    if weights is None and values.ndim == 1:
        return leave_one_out(values, group)
    weights = torch.ones_like(values[:, 0]) if weights is None else weights
    index, count = label(group)
    column = weights.reshape(-1, *[1] * (values.ndim - 1))
    total = segment_sum(column * values, index, count)[index] - column * values
    mass = segment_sum(weights, index, count)[index] - weights
    alone = torch.bincount(index, minlength=count)[index] < 2
    mass = torch.where(alone, 1.0, mass).reshape(column.shape)
    return values - torch.where(alone.reshape(column.shape), 0.0, total / mass)


@dataclasses.dataclass(frozen=True)
class ToGoLeaveOneOut:
    r"""$A_{i,t} = G_{i,t} - \sum_{j \ne i} \omega_j G_{j,t} / \sum_{j \ne i} \omega_j$, G the reward still to come.

    A response that has ended has nothing to come. Responses that are alone in their group are compared with one another.
    With the extra `importance` [N], the responses are another policy's and the baseline is a mean under this one's law.

    Args:
        tokens: False: whole returns in the place of what is to come.

    References:
        Textbook: a baseline that does not depend on the response. Cost: one scan over T and one reduction over groups.
    """

    tokens: bool = True

    reads_importance: ClassVar[bool] = True
    card: ClassVar[Card] = Card(
        name="to_go_leave_one_out",
        rows=2,
        scope=Scope.BATCH,
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        needs=("reward", "group"),
        source="textbook (policy-gradient theorem)",
        cost="O(NT), T sequential steps",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        self.card.require(batch)
        index, count = label(batch.group)
        alone = segment_size(index, count, batch.reward.dtype)[index] < 2
        group = torch.where(alone, count, index)
        weights = batch.extras.get("importance")
        if not self.tokens:
            return batch.spread(weighted_leave_one_out(batch.score, group, weights))
        return torch.where(batch.mask, weighted_leave_one_out(returns_to_go(batch), group, weights), 0)
