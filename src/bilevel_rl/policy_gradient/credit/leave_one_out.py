"""RLOO: the baseline of each response is the mean reward of the others to the same prompt."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.credit.gae import returns_to_go
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import centred, label, segment_size


def leave_one_out(score: Tensor, group: Tensor) -> Tensor:
    r"""$A_i = R_i - \frac{1}{k-1}\sum_{j\ne i} R_j = \frac{k}{k-1}(R_i - \bar R)$ within each group.

    Args:
        score: [N].
        group: [N] integers.

    Returns:
        [N]; 0 for a group of one.

    Example:
        >>> import torch
        >>> leave_one_out(torch.tensor([1.0, 0.0, 5.0]), torch.tensor([0, 0, 1]))
        tensor([ 1., -1.,  0.])
    """
    index, count = label(group)
    size = segment_size(index, count, score.dtype)[index]
    return centred(score, index, count) * size / (size - 1).clamp(min=1)


@dataclasses.dataclass(frozen=True)
class LeaveOneOut(Credit):
    r"""REINFORCE leave-one-out: an unbiased gradient with the other responses as baseline, no critic.

    $$A_{i,t} = R_i - \frac{1}{k-1}\sum_{j \ne i} R_j$$

    References:
        Ahmadian et al., Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human
        Feedback in LLMs, arXiv 2402.14740. Classical. Cost: one reduction over groups.
    """

    card: ClassVar[Card] = Card(
        name="leave_one_out",
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        needs=("reward", "group"),
        group=2,
        source="Back to Basics: Revisiting REINFORCE Style Optimization, arXiv 2402.14740",
        cite=("ahmadian2024rloo",),
        status=Status.CLASSICAL,
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a response."""
        self.card.require(batch)
        return batch.spread(leave_one_out(batch.score, batch.group))


@dataclasses.dataclass(frozen=True)
class Return(Credit):
    r"""No baseline: $A_{i,t} = R_i$ (REINFORCE); a response's own group of one is enough.

    References:
        Williams, Simple statistical gradient-following algorithms for connectionist reinforcement learning,
        1992. Classical.
    """

    card: ClassVar[Card] = Card(
        name="return",
        scope=Scope.RESPONSE,
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        needs=("reward",),
        source="Simple statistical gradient-following algorithms for connectionist reinforcement "
        "learning (1992)",
        cite=("williams1992reinforce",),
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        return batch.spread(batch.score)


@dataclasses.dataclass(frozen=True)
class Greedy(Credit):
    r"""ReMax: the baseline is the reward of the greedy response to the same prompt.

    $$A_{i,t} = \sum_{s \ge t} r_{is} - R(y^{\mathrm{greedy}})$$

    The sampler gives the greedy response's reward as the extra `baseline` [N]. Unbiased: it does not
    depend on $y_i$.

    Args:
        to_go: credit a token with the rewards from it on, as verl does; False with the score of the whole response,
            as the paper writes it for a reward at the end. Both are unbiased and equal when rewards are paid at the
            end; with rewards along the way the whole score is noisier.

    References:
        Li et al., ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning
        Large Language Models, arXiv 2310.10505. Classical; the default is verl's. Cost: one extra generation a
        prompt.
    """

    to_go: bool = True

    card: ClassVar[Card] = Card(
        name="remax",
        scope=Scope.RESPONSE,
        slot=Slot.CREDIT,
        effect=Effect.KEEPS,
        needs=("reward", "baseline"),
        source="ReMax, arXiv 2310.10505",
        cost="O(NT) + one greedy generation a prompt",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        self.card.require(batch)
        score = returns_to_go(batch) if self.to_go else batch.spread(batch.score)
        return score - batch.spread(batch.get("baseline").to(batch.reward.dtype))
