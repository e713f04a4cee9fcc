"""SPO's chain: the value of a prefix is the mean reward of rows that go on from it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.credit.segment import cut_segments
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan, at_least
from bilevel_rl.policy_gradient.rollout.writing import Writer, Written


@dataclasses.dataclass(frozen=True)
class PrefixValues:
    r"""Cut each row into segments and go on K times from before each of them.

    $$\hat V(t_k) = \frac1K\sum_{j=1}^K R\left(y_{<t_k}\, y^{(j)}\right)$$

    What goes on is thrown away after it is paid: the rows that are learned from stay those that were written first. The
    credit rule is `segment_chain`.

    Args:
        continuations: K.
        threshold: tokens with a smaller probability are cut points.
        interval: cut points a segment.

    References:
        Segment Policy Optimization, arXiv 2505.23564, SPO-chain. SEEN (public repository). Cost: K rows a segment.
    """

    continuations: int = 4
    threshold: float = 0.9
    interval: int = 2

    card: ClassVar[Card] = Card(
        name="prefix_values",
        slot=Slot.ROLLOUT,
        effect=Effect.KEEPS,
        gives=("prefix_value", "segment"),
        scope=Scope.RESPONSE,
        source="Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for LLMs, arXiv 2505.23564",
        status=Status.SEEN,
        number=40,
        cost="K rows from the beginning of every segment",
    )

    def __post_init__(self) -> None:
        at_least("PrefixValues.continuations", self.continuations, 1)
        at_least("PrefixValues.interval", self.interval, 1)

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan as it is."""
        return plan

    def write(self, writer: Writer, ask: RolloutAsk, plan: RolloutPlan, written: Written | None) -> Written:
        """The rows, with `segment` and `prefix_value`."""
        rows = writer.write(plan.start) if written is None else written
        segment = cut_segments(rows.logp, rows.mask, self.threshold, self.interval)
        segment = torch.where(rows.mask, segment, -1)
        before = torch.nn.functional.pad(segment, (1, 0), value=-1)[:, :-1].cummax(1).values
        row, column = torch.nonzero(rows.mask & (segment != before), as_tuple=True)  # where segments begin
        copies = row.repeat_interleave(self.continuations)
        after = writer.write(
            rows.start[copies], rows.rows(copies), column.repeat_interleave(self.continuations)
        )
        mean = writer.rewards(after).reshape(-1, self.continuations).mean(1)
        value = mean.new_zeros(rows.tokens.shape)
        value[row, column] = mean
        return rows.knowing(segment=segment.clamp(min=0), prefix_value=value)
