"""HGPO: a step's credit from nested groups of steps that share one, two, ... recent observations."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.credit.group_normalised import GroupMean, GroupNorm
from bilevel_rl.policy_gradient.segments import (
    Turns,
    centred,
    label,
    segment_size,
    segment_std,
)


def turn_returns(reward: Tensor, valid: Tensor, gamma: float) -> Tensor:
    """[N, U]: discounted sum of the turn rewards from each turn on."""
    out, follow = torch.zeros_like(reward), reward.new_zeros(len(reward))
    for u in reversed(range(reward.shape[1])):
        follow = torch.where(valid[:, u], reward[:, u] + gamma * follow, follow)
        out[:, u] = torch.where(valid[:, u], follow, 0)
    return out


def nested_labels(group: Tensor, key: Tensor, valid: Tensor, depth: int) -> list[Tensor]:
    """For k = 1..depth+1 the group number of each valid step by its last k observations: [steps] each.

    Steps near the start have fewer observations; they match only steps with the same ones and the same start.
    """
    n, width = valid.shape
    prompt = group[:, None].expand(n, width)[valid]
    compact, _ = label(torch.where(valid, key, key.new_zeros(())))
    order = torch.cumsum(valid.long(), 1) - 1  # index among the row's valid turns
    dense = torch.full((n, width), -1, dtype=torch.long, device=key.device)
    rows = torch.arange(n, device=key.device)[:, None].expand(n, width)
    dense[rows[valid], order[valid]] = compact[valid]
    labels, current = [], prompt
    for k in range(depth + 1):
        position = order[valid] - k
        seen = torch.where(position >= 0, dense[rows[valid], position.clamp(min=0)], -1)
        current, _ = label(current, seen)
        labels.append(current)
    return labels


@dataclasses.dataclass(frozen=True)
class HierarchyOfGroups:
    r"""Step-level advantages from the returns of steps that were in the same situation, at several
    strictnesses.

    $$A_u = \sum_{k=1}^{K+1} w_k A^{(k)}_u, \qquad w_k \propto (k+1)^\alpha \text{ over the non-zero }
    A^{(k)}_u$$

    where $A^{(k)}$ compares the discounted return of the step with those of the steps of the same prompt
    whose last k observations coincide. K = 0 is GiGPO's step-level advantage.

    Args:
        depth: K.
        alpha: power of the weights.
        gamma: discount a turn.
        scale: divide by the population standard deviation of each group.
        eps: added to it.
        base: a trajectory-level credit rule, added as one more group (weight 1 before normalisation).
        drop_zeros: leave out levels whose advantage is exactly 0 and renormalise, as the release does;
            False keeps every level that has company.

    References:
        Hierarchy-of-Groups Policy Optimization for Long-Horizon Agentic Tasks. SEEN (released code, with
        its quirk that a level whose advantage happens to be 0 is dropped). Cost: K + 1 sorts of the steps.
    """

    depth: int = 2
    alpha: float = 1.0
    gamma: float = 0.95
    scale: bool = False
    eps: float = 1e-6
    base: GroupNorm | GroupMean | None = None
    drop_zeros: bool = True

    card: ClassVar[Card] = Card(
        name="hgpo",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "group", "turn", "state_key"),
        source="Hierarchy-of-Groups Policy Optimization for Long-Horizon Agentic Tasks",
        status=Status.SEEN,
        number=66,
        cost="O(NT) + K + 1 sorts of the steps",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        (key,) = self.card.take(batch, "state_key")
        turns = Turns.of(batch)
        valid = turns.valid
        returns = turn_returns(turns.sum(batch.token_reward), valid, self.gamma)[valid]
        total, norm = torch.zeros_like(returns), torch.zeros_like(returns)
        for k, index in enumerate(
            nested_labels(batch.group, turns.at_first(key), valid, self.depth), start=1
        ):
            count = int(index.max()) + 1 if len(index) else 0
            a = centred(returns, index, count)
            if self.scale:
                a = a / (segment_std(returns, index, count)[index] + self.eps)
            company = segment_size(index, count, a.dtype)[index] > 1
            used = company & (a != 0) if self.drop_zeros else company
            weight = used.to(a.dtype) * (k + 1) ** self.alpha
            total, norm = total + weight * a, norm + weight
        if self.base is not None:
            a = turns.mean(self.base(batch))[valid]
            used = (a != 0) if self.drop_zeros else torch.ones_like(a, dtype=torch.bool)
            total, norm = total + torch.where(used, a, 0), norm + used.to(a.dtype)
        step = torch.zeros(valid.shape, dtype=returns.dtype, device=returns.device)
        step[valid] = torch.where(norm > 0, total / torch.where(norm > 0, norm, 1), 0)
        return turns.spread(step)
