"""The policy-gradient engine: published components as pure tensor functions on one record, without a model.

A `Recipe` composes them slot by slot: rollout -> select -> reward -> credit -> weigh -> loss + regular -> step.

    recipe = named("grpo")                                          # or by its parts:
    recipe = compose("credit=empg(adora(group_norm)), loss=clipped(high=0.28), regular=0.01*sampled_kl")
    recipe.check({"logp", "old", "ref", "entropy", "turn"}, group_size=8)   # says now what would be missing
    ready = recipe.prepare(batch)                                   # once an iteration, shared by both followers
    loss, terms = recipe.objective(ready.replace(logp=logp))        # each gradient step

A component of your own is a frozen dataclass with a `card` and a `__call__`; `check_component` tells what it breaks.
"""

from __future__ import annotations

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.checks import check_component
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.recipes import compose, named

__all__ = ["Batch", "Recipe", "check_component", "compose", "named"]
