"""DVAO: several rewards in one advantage, each weighted by how much it varies in the group."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import centred, label, segment_size, segment_sum


def variance_adaptive(scores: Tensor, group: Tensor, base: Tensor) -> Tensor:
    r"""$A_i = \frac{\sum_k b_k x_{ik}}{\sum_k b_k\sigma_k}$, x the deviations from the group's mean and
    $\sigma$ their spread.

    Args:
        scores: [N, K].
        group: [N] integers.
        base: [K] weights b, at least 0; may require a gradient (an upper-level variable).

    Returns:
        [N]; 0 for a group of one or where $\sum b\sigma$ is 0. Its mean square in a group is at most 1.

    Example:
        >>> s = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
        >>> variance_adaptive(s, torch.tensor([0, 0]), torch.tensor([1.0, 1.0])).tolist()
        [1.0, -1.0]
    """
    index, count = label(group)
    x = torch.stack([centred(column, index, count) for column in scores.unbind(-1)], -1)
    size = segment_size(index, count, scores.dtype)
    sigma = (segment_sum(x.square(), index, count) / size[:, None]).sqrt()
    scale = (sigma @ base)[index]
    positive = scale > 0
    return torch.where(positive, (x @ base) / torch.where(positive, scale, 1), 0)


@dataclasses.dataclass(frozen=True)
class MultiReward(Credit):
    r"""Variance-adaptive combination of K reward terms, each normalised in its group and weighted by its
    spread.

    $$w_k = \frac{b_k\sigma_k}{\sum_j b_j\sigma_j}, \qquad A = \sum_k w_k\frac{x_k}{\sigma_k}
      = \frac{\sum_k b_k x_k}{\sum_k b_k\sigma_k}$$

    Args:
        base: weights b of the first terms; the others have 1.

    References:
        DVAO: Dynamic Variance-adaptive Advantage Optimization for Multi-reward Reinforcement Learning,
            arXiv 2605.25604.
        SEEN (implementation notes). Cost: O(NK).
    """

    base: tuple[float, ...] = ()

    card: ClassVar[Card] = Card(
        name="dvao",
        slot=Slot.CREDIT,
        effect=Effect.RESCALES,
        needs=("reward", "group"),
        group=2,
        source="DVAO: Dynamic Variance-adaptive Advantage Optimization, arXiv 2605.25604",
        status=Status.SEEN,
        number=55,
        note="the objective is sum_k b_k R_k, rescaled per prompt by 1 / sum_k b_k sigma_k",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a response."""
        self.card.require(batch)
        scores = batch.scores
        base = scores.new_ones(scores.shape[1])
        base[: len(self.base)] = base.new_tensor(self.base)
        return batch.spread(variance_adaptive(scores, batch.group, base))
