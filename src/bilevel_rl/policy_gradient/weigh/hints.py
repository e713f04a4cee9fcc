"""ADHint: how much of the solution to give, and how much to learn from the given part."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status


def hint_length(pass_rate: Tensor, length: Tensor, largest: float = 0.8) -> Tensor:
    r"""Tokens of the reference solution to give: $\lfloor \rho_{max}\,(1 - \text{pass
    rate})\,|y^*|\rfloor$; 0 if always solved.

    Example:
        >>> hint_length(torch.tensor([1.0, 0.0]), torch.tensor([10, 10])).tolist()
        [0, 8]
    """
    difficulty = (1 - pass_rate).clamp(0, 1)
    return torch.floor(largest * difficulty * length + 1e-6).long()


@dataclasses.dataclass(frozen=True)
class HintWeight:
    r"""Hint tokens count by how much the policy agrees with them, and never against them.

    $$w_t = \pi(y_t)\,\mathbb 1\{A_t > 0,\ \pi(y_t) \ge \text{threshold}\} \text{ on hint tokens},
    \qquad 1 \text{ elsewhere}$$

    Args:
        threshold: hint tokens less likely than this get no gradient.

    References:
        ADHint: Adaptive Hints with Difficulty Priors for Reinforcement Learning. In the spirit of: the
            two rules are SEEN in the
        abstract, their formulas INFERRED.
    """

    threshold: float = 0.1

    card: ClassVar[Card] = Card(
        name="adhint_weight",
        slot=Slot.WEIGH,
        effect=Effect.CHANGES,
        needs=("old", "advantage", "hint"),
        scope=Scope.RESPONSE,
        source="ADHint: Adaptive Hints with Difficulty Priors",
        status=Status.INFERRED,
        number=45,
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] weights in [0, 1]."""
        old, advantage, hint = self.card.take(batch, "old", "advantage", "hint")
        p = old.detach().exp()
        given = torch.where((advantage > 0) & (p >= self.threshold), p, 0)
        return torch.where(hint.bool() & batch.mask, given, batch.mask.to(p.dtype))
