"""Advantages from the mean and spread of a group (GRPO, Dr. GRPO) or of the whole batch (REINFORCE++)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, TensorComponent
from bilevel_rl.policy_gradient.credit.gae import returns_to_go
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import centred, label, masked_mean, scaled, segment_size, segment_std


def group_deviation(score: Tensor, group: Tensor, scale: bool, eps: float, ddof: int) -> Tensor:
    r"""$(R_i - \bar R)/(\sigma + \epsilon)$ within each group [N]; 0 for a group of one or of equal rewards.

    Example:
        >>> group_deviation(torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), scale=True, eps=0.0, ddof=0)
        tensor([ 1., -1.])
    """
    index, count = label(group)
    deviation = centred(score, index, count)
    if not scale:
        return deviation
    # equal rewards have deviation exactly 0: it stays 0 when eps is 0 as well
    return scaled(deviation, index, count, eps, ddof)


@dataclasses.dataclass(frozen=True)
class GroupNorm(Credit):
    r"""Group-normalised advantage (GRPO): deviation from the group's mean in units of its standard deviation.

    $$A_{i,t} = \frac{R_i - \bar R}{\sigma + \epsilon}$$

    Args:
        eps: added to the standard deviation, in units of reward.
        ddof: 1 divides the variance by k - 1 (public trainers), 0 by k.
        over: whose standard deviation, that of the "group" or of the "batch"'s rewards (Lite PPO, arXiv 2508.08221).

    References:
        Shao et al., DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models,
        arXiv 2402.03300, section 4.1. Classical. The scale is computed from the group that it scales, so
        the per-prompt statement is exact only for an independent scale.
    """

    eps: float = 1e-4
    ddof: int = 1
    over: str = "group"

    card: ClassVar[Card] = Card(
        name="group_norm",
        slot=Slot.CREDIT,
        effect=Effect.RESCALES,
        needs=("reward", "group"),
        group=2,
        source="DeepSeekMath, arXiv 2402.03300",
        cite=("shao2024deepseekmath",),
    )

    def __post_init__(self) -> None:
        if self.over not in ("group", "batch"):
            raise InvalidConfig(message("GroupNorm.over", repr(self.over), "group or batch", "Choose one"))

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a response."""
        self.card.require(batch)
        if self.over == "group":
            return batch.spread(group_deviation(batch.score, batch.group, True, self.eps, self.ddof))
        deviation = group_deviation(batch.score, batch.group, False, 0.0, 0)
        spread = segment_std(batch.score, torch.zeros_like(batch.group), 1, self.ddof) + self.eps
        return batch.spread(
            torch.where(deviation == 0, 0, deviation / torch.where(deviation == 0, 1, spread))
        )


@dataclasses.dataclass(frozen=True)
class GroupMean(Credit):
    r"""Dr. GRPO's advantage: deviation from the group's mean, not divided by the spread.

    $$A_{i,t} = R_i - \bar R = \tfrac{k-1}{k}\,\mathrm{RLOO}_i$$

    With `losses` averaged by `PerConstant` this is the whole of Dr. GRPO.

    References:
        Liu et al., Understanding R1-Zero-Like Training: A Critical Perspective, arXiv 2503.20783. Classical.
    """

    card: ClassVar[Card] = Card(
        name="group_mean",
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        needs=("reward", "group"),
        group=2,
        source="Understanding R1-Zero-Like Training (Dr. GRPO), arXiv 2503.20783",
        note="the gradient is (k-1)/k of RLOO's: the same objective, a constant scale when all groups "
        "have k members",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a response."""
        self.card.require(batch)
        return batch.spread(group_deviation(batch.score, batch.group, False, 0.0, 0))


@dataclasses.dataclass(frozen=True)
class BatchNorm(Credit):
    r"""REINFORCE++: discounted returns to go, normalised over all action tokens of the batch.

    $$A_t = \frac{G_t - \bar G}{\sigma_G + \epsilon}$$

    Args:
        gamma: discount a token.
        eps: added to the standard deviation.
        inner: a credit rule whose advantages are normalised instead of the returns (`group_mean` gives the
            REINFORCE++-baseline variant).

    References:
        Hu, REINFORCE++: A Simple and Efficient Approach for Aligning Large Language Models, arXiv
        2501.03262. Classical.
    """

    gamma: float = 1.0
    eps: float = 1e-8
    inner: TensorComponent | None = None

    card: ClassVar[Card] = Card(
        name="batch_norm",
        scope=Scope.BATCH,
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward",),
        source="REINFORCE++, arXiv 2501.03262",
        note="one scale for all prompts; the batch mean as baseline is correlated with each response "
        "(bias O(1/N))",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, mean 0 over the action tokens."""
        self.card.require(batch)
        raw = returns_to_go(batch, self.gamma) if self.inner is None else self.inner(batch)
        return standardised(raw, batch.mask, self.eps)


def standardised(values: Tensor, mask: Tensor, eps: float) -> Tensor:
    """[N, T]: mean 0 and standard deviation 1 over the action tokens; exactly 0 when all are equal."""
    low = torch.where(mask, values, torch.inf).amin() if mask.numel() else values.new_zeros(())
    high = torch.where(mask, values, -torch.inf).amax() if mask.numel() else values.new_zeros(())
    deviation = torch.where(mask & (high > low), values - masked_mean(values, mask), 0)
    return deviation / (masked_mean(deviation.square(), mask).sqrt() + eps)


def group_size(batch: Batch) -> Tensor:
    """[N]: how many responses share each response's prompt."""
    index, count = label(batch.group)
    return segment_size(index, count, batch.reward.dtype)[index]
