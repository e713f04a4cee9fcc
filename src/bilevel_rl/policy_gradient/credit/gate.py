"""HPT's gate: supervised learning where the policy fails, reinforcement learning where it succeeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status, TensorComponent
from bilevel_rl.policy_gradient.credit.group_normalised import GroupNorm
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import label, segment_sum


@dataclasses.dataclass(frozen=True)
class Gate(Credit):
    r"""HPT's gate: prompts that the policy hardly solves learn from a demonstration, the others from their
    samples.

    $$P(q) = \#\{i : R_i > \text{threshold}\}; \quad P \le \gamma: \text{ demonstrations with } A = c,\
    \text{samples } 0;
      \quad P > \gamma: \text{ samples with their } A,\ \text{demonstrations } 0$$

    Rows of the extra `demonstration` [N] bool are demonstrations; they take no part in the samples'
    statistics. Use it with the loss `hybrid`, which averages both kinds of rows apart.

    Args:
        inner: credit rule of the samples.
        gate: $\gamma$; -1 is pure RL, the number of samples a prompt pure SFT.
        coefficient: c.
        threshold: a response is solved when its reward is above this.
        mix: smooth alternative: share of solved samples [N] -> (weight of samples [N], weight of
            demonstrations [N]).

    References:
        Towards a Unified View of Large Language Model Post-Training. SEEN (public repository).
    """

    inner: TensorComponent = GroupNorm()
    gate: float = 0.0
    coefficient: float = 1.0
    threshold: float = 0.5
    mix: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    card: ClassVar[Card] = Card(
        name="hpt_gate",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "group", "demonstration"),
        source="Towards a Unified View of Large Language Model Post-Training",
        status=Status.SEEN,
        number=5,
        note="the gate, or the weights of `mix`, can be an upper-level variable",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        (demonstration,) = self.card.take(batch, "demonstration")
        demonstration = demonstration.bool()
        dtype = batch.reward.dtype
        index, count = label(batch.group)
        sampled = (~demonstration).to(dtype)
        solved = segment_sum(sampled * (batch.score > self.threshold), index, count)[index]
        if self.mix is None:
            on = (solved > self.gate).to(dtype)
            off = 1 - on
        else:
            on, off = self.mix(solved / segment_sum(sampled, index, count)[index].clamp(min=1))
        rows = torch.nonzero(~demonstration)[:, 0]
        out = batch.spread(off.to(dtype) * self.coefficient * demonstration)
        own = self.inner(batch.rows(rows)) * on.to(dtype)[rows][:, None]
        return out.index_copy(0, rows, own.to(out.dtype))
