"""D3S on responses: keep, of each prompt, the responses whose advantages vary the most."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.segments import (
    centred,
    label,
    masked_mean,
    members,
)
from bilevel_rl.policy_gradient.setting import Setting


def most_varied(values: Tensor, group: Tensor, keep: Tensor) -> Tensor:
    r"""[N] bool: in each group the subset of the given size with the largest variance.

    It is always the j largest and the $n_s - j$ smallest for some j, so a sort and a scan over j find it.

    Args:
        values: [N].
        group: [N] integers.
        keep: [G] integers, size of the subset of each group (in the order of `label`), at most the group's.

    Example:
        >>> most_varied(torch.tensor([0.0, 1.0, 5.0]), torch.tensor([0, 0, 0]), torch.tensor([2])).tolist()
        [True, False, True]
    """
    index, count = label(group)
    if not count:
        return torch.zeros_like(values, dtype=torch.bool)
    row, real = members(index, count)
    # shift each group to its mean first: prefix sums of squares cancel badly otherwise
    x = torch.where(real, centred(values, index, count)[row], -torch.inf)
    order = torch.argsort(x, dim=1, descending=True, stable=True)
    x = torch.where(real.gather(1, order), x.gather(1, order), 0)
    size = real.sum(1)
    zero = x.new_zeros((count, 1))
    up = torch.cat([zero, x.cumsum(1)], 1)  # sums of the j largest
    up2 = torch.cat([zero, x.square().cumsum(1)], 1)
    width = x.shape[1]
    j = torch.arange(width + 1, device=x.device).expand(count, -1)
    want = keep[:, None].clamp(max=size[:, None])
    possible = j <= want
    start = (size[:, None] - (want - j)).clamp(0, width)  # the smallest begin here
    total = up.gather(1, j) + (up.gather(1, size[:, None]) - up.gather(1, start))
    square = up2.gather(1, j) + (up2.gather(1, size[:, None]) - up2.gather(1, start))
    n = want.clamp(min=1).to(x.dtype)
    variance = torch.where(possible, square / n - (total / n).square(), -torch.inf)
    best = variance.argmax(1, keepdim=True)
    position = torch.arange(width, device=x.device).expand(count, -1)
    chosen = (position < best) | ((position >= size[:, None] - (want - best)) & (position < size[:, None]))
    out = torch.zeros_like(values, dtype=torch.bool)
    out[row.gather(1, order)[chosen & real.gather(1, order)]] = True
    return out


@dataclasses.dataclass(frozen=True)
class MostVaried:
    r"""Keep the responses of each prompt with maximal $\mathrm{Var}(A)$, then the same across the prompts
    left.

    Advantages are those of the whole groups: nothing is normalised again after the cut. Shares go linearly
    from `start` to `end` with `Batch.progress`.

    Args:
        start, end: share of each prompt's responses kept at the beginning and the end of training (at
        least 2). across: share kept of all that is left, across prompts; 1 keeps all.

    References:
        Learning More with Less: A Dynamic Dual-Level Down-Sampling Framework for Efficient Policy
        Optimization (D3S). SEEN (abstract and paper notes); defaults are ours. A non-random subset: the
        gradient is biased until the share is 1.
    """

    start: float = 0.5
    end: float = 1.0
    across: float = 1.0

    card: ClassVar[Card] = Card(
        name="d3s",
        slot=Slot.SELECT,
        effect=Effect.CHANGES,
        needs=("advantage", "group"),
        source="Learning More with Less: D3S",
        status=Status.SEEN,
        number=1,
        cost="O(N log N)",
        note="scope is the batch when across < 1",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return (
            "all its shares are 1. Lower start or across"
            if self.start == self.end == self.across == 1
            else ""
        )

    def __call__(self, batch: Batch) -> Batch:
        """The responses kept, in their order."""
        (advantage,) = self.card.take(batch, "advantage")
        value = masked_mean(advantage.detach(), batch.mask, 1)
        share = (1 - batch.progress) * self.start + batch.progress * self.end
        index, count = label(batch.group)
        size = torch.bincount(index, minlength=count)
        keep = torch.minimum((size * share).ceil().long().clamp(min=2), size)
        chosen = most_varied(value, batch.group, keep)
        if self.across < 1:
            rows = torch.nonzero(chosen)[:, 0]
            number = torch.tensor(
                [max(math.ceil(len(rows) * self.across), min(2, len(rows)))], device=rows.device
            )
            inner = most_varied(value[rows], torch.zeros_like(rows), number)
            chosen = torch.zeros_like(chosen).index_fill(0, rows[inner], True)
        return batch.rows(torch.nonzero(chosen)[:, 0])
