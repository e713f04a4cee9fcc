"""Rollout: what an iteration generates, decided before it is generated; `RolloutAsk -> RolloutPlan`, one file a method."""

from __future__ import annotations

from bilevel_rl.moved import renamed
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan
from bilevel_rl.policy_gradient.rollout.choose import Nearest, Spread
from bilevel_rl.policy_gradient.rollout.refill import Refill

__getattr__ = renamed("bilevel_rl.policy_gradient.rollout", Ask="RolloutAsk", Plan="RolloutPlan")

ALL = (Nearest, Spread, Refill)

__all__ = ["ALL", "Nearest", "Refill", "RolloutAsk", "RolloutPlan", "Spread"]
