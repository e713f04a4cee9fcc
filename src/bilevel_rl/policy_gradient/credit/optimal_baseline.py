"""The baseline that minimises the variance of the gradient, from the norms of the score functions."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import label, segment_size, segment_sum


def logit_score_norm(logits: Tensor, token: Tensor) -> Tensor:
    r"""$\|\partial\log p_y/\partial z\|^2 = 1 - 2p_y + \sum_k p_k^2$ of each token: a cheap proxy for the
    score's norm.

    Args:
        logits: [..., V].
        token: [...] integer, the token drawn.

    Returns:
        [...], in [0, 2].

    Example:
        >>> logit_score_norm(torch.zeros(2), torch.tensor(0)).item()
        0.5
    """
    p = logits.softmax(-1)
    chosen = p.gather(-1, token[..., None])[..., 0]
    return 1 - 2 * chosen + p.square().sum(-1)


def weighted_baseline(score: Tensor, weight: Tensor, group: Tensor, leave_one_out: bool) -> Tensor:
    r"""$b_i = \sum_j n_j R_j / \sum_j n_j$ in each group, over $j \ne i$ when `leave_one_out`.

    Args:
        score: [N] rewards.
        weight: [N] squared norms of the score functions, at least 0.
        group: [N] integers.
        leave_one_out: leave the response itself out, which keeps the gradient unbiased.

    Returns:
        [N] baselines; the reward itself (advantage 0) where there is nobody to compare with; the plain mean
        where all weights are 0.
    """
    index, count = label(group)
    weight = weight.to(score.dtype)
    # where a whole group has zero weight, every member counts the same
    weight = torch.where(segment_sum(weight, index, count)[index] > 0, weight, 1)
    total, norm = segment_sum(weight * score, index, count)[index], segment_sum(weight, index, count)[index]
    size = segment_size(index, count, score.dtype)[index]
    if leave_one_out:
        others = norm - weight
        mean_of_others = (segment_sum(score, index, count)[index] - score) / (size - 1).clamp(min=1)
        enough = others > 1e-12 * norm
        base = torch.where(enough, (total - weight * score) / torch.where(enough, others, 1), mean_of_others)
    else:
        base = total / norm
    return torch.where(size > 1, base, score)


@dataclasses.dataclass(frozen=True)
class OptimalBaseline(Credit):
    r"""The variance-optimal baseline of each prompt, weighted by the squared norm of each response's score
    function.

    $$b^* = \frac{E[\|\nabla\log\pi(y)\|^2 R(y)]}{E[\|\nabla\log\pi(y)\|^2]}, \qquad A_{i,t} = R_i - b_i$$

    The norm is the sum over tokens of the field `score_norm` (see `logit_score_norm`).

    Args:
        leave_one_out: estimate it from the other responses only (unbiased; the default). False is the
            formula as printed, which minimises the sampled second moment but is correlated with each
            response.

    References:
        OBLR-PO: A Theoretical Framework for Stable Reinforcement Learning, arXiv 2511.23310. In the spirit
        of: the formula is INFERRED from the abstract (a classical result); the norm proxy is SEEN in a
        public trainer. The leave-one-out form is ours.
    """

    leave_one_out: bool = True

    card: ClassVar[Card] = Card(
        name="optimal_baseline",
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        needs=("reward", "group", "score_norm"),
        group=2,
        source="OBLR-PO: A Theoretical Framework for Stable Reinforcement Learning, arXiv 2511.23310",
        status=Status.INFERRED,
        number=3,
        cost="O(NT) + O(NTV) for the norms, where the logits are",
        note="unbiased with leave_one_out=True",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a response."""
        (norm,) = self.card.take(batch, "score_norm")
        weight = norm.detach().sum(1) if norm.ndim == 2 else norm.detach()
        return batch.spread(
            batch.score - weighted_baseline(batch.score, weight, batch.group, self.leave_one_out)
        )


@dataclasses.dataclass(frozen=True)
class LengthBaseline(Credit):
    r"""OPO: the optimal baseline when every token has the same score norm, rewards weighted by length.

    $$b_i = \frac{\sum_j |y_j| R_j}{\sum_j |y_j|}$$

    Args:
        leave_one_out: leave the response itself out of its baseline (ours, unbiased). False, the default, is the
            paper's and verl's: the sample is part of it, which makes the gradient about (k-1)/k of its size.

    References:
        Hao et al., On-Policy RL with Optimal Reward Baseline (OPO), arXiv 2505.23585. SEEN (verl).
    """

    leave_one_out: bool = False

    card: ClassVar[Card] = Card(
        name="length_baseline",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "group"),
        group=2,
        source="On-Policy RL with Optimal Reward Baseline (OPO), arXiv 2505.23585",
        status=Status.SEEN,
        note="the baseline contains the response itself, as published; unbiased (keeps the objective) with leave_one_out",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a response."""
        self.card.require(batch)
        weight = batch.mask.sum(1)
        return batch.spread(
            batch.score - weighted_baseline(batch.score, weight, batch.group, self.leave_one_out)
        )
