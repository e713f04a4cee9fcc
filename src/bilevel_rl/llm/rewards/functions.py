"""Reward functions as TRL writes them: called on a rollout, and what they return checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.llm.sampling.rollout import Rollout


def call_reward_function(
    function: Callable[..., Any], rollout: Rollout, where: str = "reward function"
) -> Tensor:
    """Call a function with TRL's reward signature and check what it returns.

    Returns:
        [N] float64.

    Raises:
        InvalidProblem: the wrong length, or a value that is missing or not finite.
    """
    columns: dict[str, list[Any]] = {}
    for key in rollout.prompts[0].columns:
        columns[key] = [prompt.columns.get(key) for prompt in rollout.prompts]
    name = getattr(function, "__name__", type(function).__name__)
    values = function(
        prompts=[prompt.text for prompt in rollout.prompts], completions=list(rollout.texts),
        completion_ids=rollout.completion_ids(), **columns,
    )  # fmt: skip
    values = list(values)
    if len(values) != rollout.size:
        raise InvalidProblem(
            message(f"{where} {name}", f"{len(values)} values for {rollout.size} completions",
                    "one value for each completion", "Correct the function")
        )  # fmt: skip
    bad = [i for i, v in enumerate(values) if v is None or not float("-inf") < float(v) < float("inf")]
    if bad:
        raise InvalidProblem(
            message(f"{where} {name}", f"{values[bad[0]]!r} for completion {bad[0]}", "every value must be finite",
                    "Correct the function")
        )  # fmt: skip
    return torch.tensor([float(v) for v in values], dtype=torch.float64)
