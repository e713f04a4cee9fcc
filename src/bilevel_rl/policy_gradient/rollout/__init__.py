"""Rollout: what an iteration generates and how: `RolloutAsk -> RolloutPlan`, and for some `write`; one file a method."""

from __future__ import annotations

from bilevel_rl.moved import renamed
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan
from bilevel_rl.policy_gradient.rollout.choose import Nearest, Spread
from bilevel_rl.policy_gradient.rollout.hints import Hint
from bilevel_rl.policy_gradient.rollout.prefix_values import PrefixValues
from bilevel_rl.policy_gradient.rollout.probes import StepProbe
from bilevel_rl.policy_gradient.rollout.prompt_model import PromptModel
from bilevel_rl.policy_gradient.rollout.refill import Refill
from bilevel_rl.policy_gradient.rollout.tree import Tree
from bilevel_rl.policy_gradient.rollout.vine import Vine
from bilevel_rl.policy_gradient.rollout.windows import Windows
from bilevel_rl.policy_gradient.rollout.writing import Writer, Written

__getattr__ = renamed("bilevel_rl.policy_gradient.rollout", Ask="RolloutAsk", Plan="RolloutPlan")

ALL = (Nearest, Spread, PromptModel, Refill, PrefixValues, Tree, Vine, Hint, Windows, StepProbe)

__all__ = [
    "ALL",
    "Hint",
    "Nearest",
    "PrefixValues",
    "PromptModel",
    "Refill",
    "RolloutAsk",
    "RolloutPlan",
    "Spread",
    "StepProbe",
    "Tree",
    "Vine",
    "Windows",
    "Writer",
    "Written",
]  # fmt: skip
