"""GDPO: each reward is normalised in its group before they are added, so that a large one does not drown the others."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.credit.group_normalised import group_deviation
from bilevel_rl.policy_gradient.credit.sums import Credit


@dataclasses.dataclass(frozen=True)
class Decoupled(Credit):
    r"""Group-normalised rewards, added by weight, and normalised once more over the batch.

    $$B_i = \sum_k w_k\,\frac{R_{ik} - \bar R_k}{\sigma_k + \epsilon}, \qquad
      A_i = \frac{B_i - \bar B}{\sigma_B + \epsilon}$$

    Args:
        weights: $w_k$, one a reward term; empty gives all the weight 1.
        eps: added to both deviations.

    References:
        GDPO: Group reward-Decoupled Normalization Policy Optimization for Multi-reward RL Optimization, arXiv
        2601.05242. SEEN (TRL 1.16, `multi_objective_aggregation="normalize_then_sum"`). Cost: O(NK).
    """

    weights: tuple[float, ...] = ()
    eps: float = 1e-4

    card: ClassVar[Card] = Card(
        name="gdpo",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "group"),
        group=2,
        scope=Scope.BATCH,
        source="GDPO: Group reward-Decoupled Normalization Policy Optimization, arXiv 2601.05242",
        status=Status.SEEN,
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages, one number a response."""
        self.card.require(batch)
        terms = [group_deviation(r, batch.group, True, self.eps, 1) for r in batch.scores.unbind(1)]
        if not terms:
            return torch.zeros_like(batch.token_reward)
        weights = self.weights or (1.0,) * len(terms)
        both = torch.stack([w * term for w, term in zip(weights, terms, strict=True)]).sum(0)
        return batch.spread(group_deviation(both, torch.zeros_like(batch.group), True, self.eps, 1))
