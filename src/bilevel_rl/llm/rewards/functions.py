"""Reward functions as TRL writes them: called on a rollout, and what they return checked."""

from __future__ import annotations

import asyncio
import inspect
import math
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.llm.sampling.rollout import Rollout

STATE = "trainer_state"  # given to functions that name it


class Progress:
    """Where a run stands, under the names of transformers' `TrainerState`, for reward functions that take
    `trainer_state`.

    Args:
        trainer: whose step, history and configuration are read when they are asked for.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = weakref.ref(trainer)  # the trainer owns the reward that owns this

    @property
    def global_step(self) -> int:
        """Iterations done."""
        trainer = self._trainer()
        return 0 if trainer is None else trainer.step

    @property
    def max_steps(self) -> int:
        """Iterations of the whole run."""
        trainer = self._trainer()
        return 0 if trainer is None else trainer.config.steps

    @property
    def log_history(self) -> list[dict[str, float]]:
        """One dict of metrics an iteration."""
        trainer = self._trainer()
        return [] if trainer is None else trainer.history


def progress(reward: Any, trainer: Any) -> None:
    """Let a reward that is made of functions tell them where the run stands."""
    if hasattr(reward, "functions") and hasattr(reward, "state"):
        reward.state = Progress(trainer)


def call_reward_function(
    function: Callable[..., Any], rollout: Rollout, where: str = "reward function", state: Any = None,
    absent: bool = False,
) -> Tensor:  # fmt: skip
    """Call a function with TRL's reward signature and check what it returns.

    Coroutine functions are awaited. Every row's own columns are handed over, None where a row lacks one.

    Args:
        function: `f(prompts, completions, completion_ids, **columns) -> one number a completion`.
        rollout: the completions.
        where: for errors.
        state: transformers' `TrainerState`, for functions with an argument `trainer_state`.
        absent: whether None is an answer ("does not apply"); it comes back as NaN.

    Returns:
        [N] float64.

    Raises:
        InvalidProblem: the function raised, or returned no list, the wrong length, or a value that is missing or not
            finite.
    """
    name = f"{where} {getattr(function, '__name__', type(function).__name__)}"
    columns: dict[str, list[Any]] = {}
    for key in dict.fromkeys(key for prompt in rollout.prompts for key in prompt.columns):
        columns[key] = [prompt.columns.get(key) for prompt in rollout.prompts]
    if STATE in _names(function):
        columns[STATE] = state
    try:
        values = function(
            prompts=[prompt.text for prompt in rollout.prompts], completions=list(rollout.texts),
            completion_ids=rollout.completion_ids(), **columns,
        )  # fmt: skip
        if inspect.isawaitable(values):
            values = asyncio.run(_result(values))
    except Exception as error:
        at = _place(error)
        raise InvalidProblem(
            message(name, f"{type(error).__name__} ({error}){at}", "it is called with prompts, completions, completion_ids"
                    + "".join(f", {key}" for key in columns) + " by keyword", "Correct the function, or take **kwargs")
        ) from error  # fmt: skip
    return _checked(name, values, rollout.size, absent)


async def _result(value: Any) -> Any:
    return await value


def _names(function: Callable[..., Any]) -> set[str]:
    try:
        return set(inspect.signature(function).parameters)
    except (TypeError, ValueError):  # something compiled
        return set()


def _place(error: BaseException) -> str:
    """Where in the user's code an error was raised, as `, FILE line N`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None or trace.tb_frame.f_code is call_reward_function.__code__:
        return ""
    return f", {trace.tb_frame.f_code.co_filename} line {trace.tb_lineno}"


def _checked(name: str, values: Any, size: int, absent: bool) -> Tensor:
    """[N] float64 of a function's answer."""
    if isinstance(values, Tensor):
        values = values.detach().flatten().tolist() if values.dim() else values.item()
    if not isinstance(values, Iterable) or isinstance(values, (str, bytes)):
        raise InvalidProblem(
            message(name, f"{values!r} for {size} completions", "a list with one value for each completion",
                    "Return a list of numbers")
        )  # fmt: skip
    values = list(values)
    if len(values) != size:
        raise InvalidProblem(
            message(name, f"{len(values)} values for {size} completions", "one value for each completion",
                    "Correct the function")
        )  # fmt: skip
    numbers = [_number(v, absent) for v in values]
    bad = next((i for i, number in enumerate(numbers) if number is None), None)
    if bad is not None:
        raise InvalidProblem(
            message(
                name,
                f"{values[bad]!r} for completion {bad}",
                "every value must be finite",
                "Correct the function",
            )
        )
    return torch.tensor(numbers, dtype=torch.float64)


def _number(value: Any, absent: bool) -> float | None:
    """A finite number, NaN for None where that is an answer, or None for anything else."""
    if value is None:
        return math.nan if absent else None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None
