"""Plain policy optimisation on a given reward: no upper level."""

from __future__ import annotations

import dataclasses
from typing import Any

from bilevel_rl.levels.followers import check_regularizer
from bilevel_rl.levels.leader import Leader
from bilevel_rl.levels.methods.base import IterationPlan, Method
from bilevel_rl.schedules import PowerDecay


@dataclasses.dataclass(frozen=True)
class Plain(Method):
    """theta ascends J at the x there is; nothing is asked and x stays."""

    asks: bool = dataclasses.field(default=False, init=False)

    def check(self, objective: Any) -> None:
        """See `Method`: no f, and a tau of 0, by which nothing is divided, leaves KL or entropy out."""
        schedules = self.settings.schedules
        if schedules.tau.initial == 0:
            schedules = dataclasses.replace(schedules, tau=PowerDecay(1.0, schedules.tau.power))
        schedules.check("config")
        check_regularizer(self.settings)

    def plan(self, leader: Leader, k: int) -> IterationPlan:
        """See `Method`."""
        return IterationPlan(asks=False)
