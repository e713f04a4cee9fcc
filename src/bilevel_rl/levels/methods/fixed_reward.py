"""Fixed reward: x is fitted on labels first, then the policy is optimised for it (the usual pipeline)."""

from __future__ import annotations

import dataclasses
from typing import Any

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.leader import Leader
from bilevel_rl.levels.methods.base import IterationPlan, Method


@dataclasses.dataclass(frozen=True)
class FixedReward(Method):
    """For `reward_steps` iterations x descends grad_x f on the first policy's rows; then x stays and theta moves."""

    keeps: bool = dataclasses.field(default=True, init=False)

    def check(self, objective: Any) -> None:
        """See `Method`."""
        super().check(objective)
        terms = [term for _, term in getattr(objective, "terms", ((1.0, objective),))]
        if not any(getattr(term, "fits", True) for term in terms):
            raise InvalidConfig(
                message("config.objective", f"{' and '.join(type(t).__name__ for t in terms)} alone with "
                        "method=fixed_reward", "x has no direct gradient there: nothing would fit the reward model",
                        "Use objective=label_likelihood or stored_preference")
            )  # fmt: skip

    def plan(self, leader: Leader, k: int) -> IterationPlan:
        """See `Method`; without fresh labels no rows are needed to fit x."""
        fitting = k < self.settings.reward_steps
        zeta = float(self.settings.schedules.zeta(k)) if fitting else 0.0
        return IterationPlan(moves=not fitting, asks=fitting, zeta=zeta, draws=not fitting or leader.fresh_labels() > 0)
