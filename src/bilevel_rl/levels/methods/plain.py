"""Plain policy optimisation on a given reward: no upper level."""

from __future__ import annotations

import dataclasses

from bilevel_rl.levels.leader import Leader
from bilevel_rl.levels.methods.base import IterationPlan, Method


@dataclasses.dataclass(frozen=True)
class Plain(Method):
    """theta ascends J at the x there is; nothing is asked and x stays."""

    asks: bool = dataclasses.field(default=False, init=False)

    def plan(self, leader: Leader, k: int) -> IterationPlan:
        """See `Method`."""
        return IterationPlan(asks=False)
