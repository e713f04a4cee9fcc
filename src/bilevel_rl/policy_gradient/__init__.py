"""The policy-gradient engine: published components as pure tensor functions on one record, without a model.

A `Recipe` composes them slot by slot: rollout -> select -> reward -> credit -> weigh -> loss + regular
-> step.
"""

from __future__ import annotations

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.recipe import Recipe

__all__ = ["Batch", "Recipe"]
