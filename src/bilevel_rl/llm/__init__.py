"""Fine-tuning of language models with a reward model that answers for what its optimal policy writes (Torch).

    from bilevel_rl.llm import BilevelTrainer, Config

Importing this package imports neither Torch nor transformers; its names are loaded when they are used.
"""

from __future__ import annotations

import importlib
from typing import Any

from bilevel_rl.errors import require

_WHERE = {
    "BilevelTrainer": "trainer", "Config": "config", "Rollout": "sampling.rollout", "Sampler": "sampling.sampler",
    "Prompt": "data.prompts", "WeightedRewards": "rewards.models", "LinearReward": "rewards.models",
    "ClassifierReward": "rewards.models", "Upper": "..levels.objectives", "Sample": "..levels.objectives",
    "SampledObjective": "..levels.objectives", "UpperObjective": "..levels.objectives",
    "LabelsPending": "judges.asking", "JudgeFailed": "judges.asking",
}  # fmt: skip

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'bilevel_rl.llm' has no attribute {name!r}")
    if name != "Config":
        require("torch", "llm")
    where = _WHERE[name]
    return getattr(importlib.import_module(where if where[0] == "." else f".{where}", "bilevel_rl.llm"), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
