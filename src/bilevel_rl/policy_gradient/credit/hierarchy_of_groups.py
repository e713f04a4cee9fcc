"""HGPO: a step's credit from nested groups of steps that share one, two, ... recent observations."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status, TensorComponent
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import (
    Turns,
    centred,
    label,
    scaled,
    segment_size,
    turn_returns,
)
from bilevel_rl.policy_gradient.setting import ONE_TURN, Setting


def nested_labels(group: Tensor, key: Tensor, valid: Tensor, depth: int) -> list[tuple[Tensor, Tensor]]:
    """For k = 1..depth+1 the groups of steps by their last k observations.

    Args:
        group: [N] integer.
        key: [N, U] integer, the observation of each turn.
        valid: [N, U] bool.
        depth: K.

    Returns:
        for each k: [steps] group numbers, and [steps] bool, whether the step has a context of length k. A step with
        fewer than k - 1 predecessors has none, and its number means nothing.
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
        labels.append((current, position >= 0))
    return labels


@dataclasses.dataclass(frozen=True)
class HierarchyOfGroups(Credit):
    r"""Step-level advantages from the returns of steps that were in the same situation, at several
    strictnesses.

    $$A_u = \sum_{k=1}^{K+1} w_k A^{(k)}_u, \qquad w_k \propto (k+1)^\alpha \text{ over the non-zero }
    A^{(k)}_u$$

    where $A^{(k)}$ compares the discounted return of the step with those of the steps of the same prompt
    whose last k observations coincide. A step with u predecessors has contexts of length 1 to min(K + 1, u + 1)
    only. The base, when there is one, enters as k = 0.

    Args:
        depth: K.
        alpha: power of the weights.
        gamma: discount a turn.
        scale: divide by the population standard deviation of each group.
        eps: added to it, and to the sum of the weights.
        base: a trajectory-level credit rule, added as k = 0 (weight 1 before normalisation).
        drop_zeros: leave out levels whose advantage is exactly 0 and renormalise, as the release does;
            False keeps every level that has company.

    References:
        Hierarchy-of-Groups Policy Optimization for Long-Horizon Agentic Tasks. SEEN (released code, with
        its quirk that a level whose advantage happens to be 0 is dropped); the defaults are the release's.
        Cost: K + 1 sorts of the steps.
    """

    depth: int = 2
    alpha: float = 1.0
    gamma: float = 0.95
    scale: bool = True
    eps: float = 1e-6
    base: TensorComponent | None = None
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

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_TURN if setting.turns is False else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        (key,) = self.card.take(batch, "state_key")
        turns = Turns.of(batch)
        valid = turns.valid
        returns = turn_returns(turns.sum(batch.token_reward), valid, self.gamma)[valid]
        total, norm = torch.zeros_like(returns), torch.zeros_like(returns)
        labels = nested_labels(batch.group, turns.at_first(key), valid, self.depth)
        for k, (index, exists) in enumerate(labels, start=1):
            a, company = self._compared(returns, index, exists)
            used = company & (a != 0) if self.drop_zeros else company
            weight = used.to(a.dtype) * (k + 1) ** self.alpha
            total, norm = total + weight * a, norm + weight
        if self.base is not None:
            a = turns.mean(self.base(batch))[valid]
            used = (a != 0) if self.drop_zeros else torch.ones_like(a, dtype=torch.bool)
            total, norm = total + torch.where(used, a, 0), norm + used.to(a.dtype)
        step = torch.zeros(valid.shape, dtype=returns.dtype, device=returns.device)
        step[valid] = torch.where(norm > 0, total / (norm + self.eps), 0)
        return turns.spread(step)

    def _compared(self, returns: Tensor, index: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        """[steps] advantages among those that have this context, 0 for the others, and who has company."""
        out, company = torch.zeros_like(returns), torch.zeros_like(exists)
        values, (index, count) = returns[exists], label(index[exists])
        a = centred(values, index, count)
        if self.scale:
            a = scaled(a, index, count, self.eps, ddof=0)
        out[exists], company[exists] = a, segment_size(index, count, a.dtype)[index] > 1
        return out, company
