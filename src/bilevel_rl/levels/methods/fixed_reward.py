"""Fixed reward: x is fitted on labels first, then the policy is optimised for it (the usual pipeline)."""

from __future__ import annotations

import dataclasses

from bilevel_rl.levels.leader import Leader
from bilevel_rl.levels.methods.base import IterationPlan, Method


@dataclasses.dataclass(frozen=True)
class FixedReward(Method):
    """For `reward_steps` iterations x descends grad_x f on the first policy's rows; then x stays and theta moves."""

    keeps: bool = dataclasses.field(default=True, init=False)

    def plan(self, leader: Leader, k: int) -> IterationPlan:
        """See `Method`; without fresh labels no rows are needed to fit x."""
        fitting = k < self.settings.reward_steps
        zeta = float(self.settings.schedules.zeta(k)) if fitting else 0.0
        return IterationPlan(moves=not fitting, asks=fitting, zeta=zeta, draws=not fitting or leader.fresh_labels() > 0)
