"""Submodular rewards: each step earns what it adds to a set function of the steps so far."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status


@dataclasses.dataclass(frozen=True)
class Coverage:
    r"""Marginal gains of a weighted coverage function, one more reward term a token.

    $$F(S) = \sum_m w_m \mathbb 1\{m \text{ is covered by } S\}, \qquad r_t = F(S_{\le t}) - F(S_{<t})$$

    The extra `cover` [N, T, M] bool says which elements each token (step) covers. The gains add up to F of
    the response, are never negative and never grow when a step comes later. Use with the credit rule
    `reward_to_go`.

    Args:
        weights: w, () for all 1.
        replace: put the gains in the place of the rewards; False adds a term.

    References:
        Submodular Reinforcement Learning (SubPO). SEEN (abstract and public repository). `marginal_gains`
        takes any set function. Cost: O(NTM).
    """

    weights: tuple[float, ...] = ()
    replace: bool = True

    card: ClassVar[Card] = Card(
        name="subpo",
        slot=Slot.REWARD,
        effect=Effect.KEEPS,
        needs=("reward", "cover"),
        scope=Scope.RESPONSE,
        source="Submodular Reinforcement Learning",
        status=Status.SEEN,
        number=18,
        cost="O(NTM)",
        note="of the submodular objective",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T, K] rewards."""
        (cover,) = self.card.take(batch, "cover")
        n, t, m = cover.shape
        column = torch.arange(t, device=cover.device)[:, None]
        seen = cover.bool() & batch.mask[..., None]
        first = torch.where(seen, column, t).amin(1) if t else seen.new_zeros((n, m), dtype=torch.long)
        weights = batch.reward.new_tensor(self.weights or (1.0,) * m).expand(n, m)
        gains = batch.reward.new_zeros((n, t + 1)).scatter_add(1, first, weights)[:, :t]
        return gains[..., None] if self.replace else torch.cat([batch.reward, gains[..., None]], -1)


def marginal_gains(function: Callable[[Sequence[Any]], float], steps: Sequence[Any]) -> list[float]:
    """Gains of any set function along one response: their sum is the function of all steps minus that of
    none.

    Example:
        >>> marginal_gains(lambda s: len(set(s)), ["a", "b", "a"])
        [1, 1, 0]
    """
    values = [function(steps[:k]) for k in range(len(steps) + 1)]
    return [after - before for before, after in itertools.pairwise(values)]
