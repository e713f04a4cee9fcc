"""Rollout: what an iteration generates, decided before it is generated; `Ask -> Plan`, one file a method."""

from __future__ import annotations

from bilevel_rl.policy_gradient.rollout.ask import Ask, Plan
from bilevel_rl.policy_gradient.rollout.choose import Nearest, Spread
from bilevel_rl.policy_gradient.rollout.refill import Refill

ALL = (Nearest, Spread, Refill)

__all__ = ["ALL", "Ask", "Nearest", "Plan", "Refill", "Spread"]
