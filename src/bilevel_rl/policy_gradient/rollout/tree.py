"""SPO's tree: rows that share their beginnings, so that the mean reward below a node is its value."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan
from bilevel_rl.policy_gradient.rollout.writing import Writer, Written


@dataclasses.dataclass(frozen=True)
class Tree:
    """Write the rows of a start as the leaves of a tree: each level adds some tokens to every node, in several ways.

    A node whose row has ended has no different children; its leaves are copies, which earn no credit against each other.
    The credit rule is `segment_tree`.

    Args:
        branching: children of a node at each level; their product is the number of rows a start. (): the prime factors of
            that number.
        tokens: of a level, the last one apart, which goes to the end; 0: the horizon over the number of levels.

    References:
        Segment Policy Optimization, arXiv 2505.23564, SPO-tree. SEEN (public repository); its trees are 6 x 6 x 6.
    """

    branching: tuple[int, ...] = ()
    tokens: int = 0

    card: ClassVar[Card] = Card(
        name="tree",
        slot=Slot.ROLLOUT,
        effect=Effect.KEEPS,
        gives=("path", "depth"),
        group=2,
        source="Segment Policy Optimization: Effective Segment-Level Credit Assignment in RL for LLMs, arXiv 2505.23564",
        status=Status.SEEN,
        number=40,
        cost="less than independent rows: what is shared is written once",
    )

    begins: ClassVar[bool] = True  # rows; others may only go on from them

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan as it is; checks that every start has as many rows as a tree has leaves."""
        self._roots(ask, plan)
        return plan

    def _roots(self, ask: RolloutAsk, plan: RolloutPlan) -> tuple[Tensor, tuple[int, ...]]:
        """[roots] the start of every tree, and the levels that all trees have.

        A start has one tree; where starts have different numbers of rows, as one has that stands in line twice, every
        `group` rows are a tree of their own.
        """
        starts, rows = torch.unique_consecutive(plan.start, return_counts=True)
        leaves = int(rows[0]) if bool((rows == rows[0]).all()) else ask.group
        if bool((rows % leaves).any()):
            raise InvalidConfig(
                message("rollout 'tree'", f"starts with {sorted(set(rows.tolist()))} rows",
                        f"as many for every start, or multiples of sampling.group = {ask.group}", "Leave spread_budget out")
            )  # fmt: skip
        return starts.repeat_interleave(rows // leaves), self.levels(leaves)

    def levels(self, rows: int) -> tuple[int, ...]:
        """Children of a node at each level, for that many leaves.

        Raises:
            InvalidConfig: no such tree.

        Example:
            >>> Tree().levels(12)
            (2, 2, 3)
        """
        found = self.branching or _factors(rows)
        if math.prod(found) != rows:
            raise InvalidConfig(
                message("Tree.branching", f"{found} for {rows} rows a start", "their product is the number of rows",
                        "Set sampling.group to the product, or leave branching out")
            )  # fmt: skip
        return found

    def write(self, writer: Writer, ask: RolloutAsk, plan: RolloutPlan, written: Written | None) -> Written:
        """The leaves, with `path` [N, D] and `depth` [N, T]; what was written before is not used."""
        nodes, levels = self._roots(ask, plan)
        tokens = self.tokens or max(writer.horizon // len(levels), 1)
        row: Written | None = None
        ends: list[Tensor] = []
        path = torch.zeros(len(nodes), 0, dtype=torch.long)
        for level, children in enumerate(levels):
            nodes = nodes.repeat_interleave(children)
            path = path.repeat_interleave(children, 0)
            ends = [end.repeat_interleave(children) for end in ends]
            last = level == len(levels) - 1
            begin = None if row is None else row.rows(torch.arange(len(row)).repeat_interleave(children))
            row = writer.write(nodes, begin, None if begin is None else begin.length, None if last else tokens)
            path = torch.cat([path, torch.arange(len(nodes))[:, None]], 1)
            ends.append(row.length)
        assert row is not None
        return row.knowing(path=path, depth=_depth(row, ends))


def _depth(row: Written, ends: list[Tensor]) -> Tensor:
    """[N, T] the level that wrote each token, from the lengths after each level."""
    column = torch.arange(row.width)
    return torch.stack([column >= end[:, None] for end in ends[:-1]] or [torch.zeros_like(row.mask)]).sum(0).long()


def _factors(number: int) -> tuple[int, ...]:
    found, factor = [], 2
    while number > 1:
        if number % factor:
            factor += 1
        else:
            found.append(factor)
            number //= factor
    return tuple(found) or (1,)
