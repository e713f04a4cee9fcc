"""Shipped small tasks by name, `text_world` or `text_world@3` (a level), and what they put into a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.loading import load_tokenizer
from bilevel_rl.llm.sampling.sampler import inverse_cdf, race
from bilevel_rl.llm.tasks import prisoners, running_sums, text_world, words
from bilevel_rl.llm.tasks.small import SmallTask

TASKS: dict[str, Callable[[int], SmallTask]] = {
    "sort": words.sort, "arithmetic": words.arithmetic_task, "running_sums": running_sums.make_task,
    "text_world": text_world.make_task, "prisoners": prisoners.make_task,
}  # fmt: skip
LEVELS = {"sort": 3, "arithmetic": 1, "running_sums": 1, "text_world": 2, "prisoners": 1}
CACHE = Path("runs/tasks")  # start policies


def task(name: str) -> SmallTask:
    """The task of that name.

    Raises:
        InvalidConfig: there is none, or no such level.

    Example:
        >>> task("text_world@1").name
        'text_world@1'
    """
    bare, at, level = name.partition("@")
    if bare not in TASKS:
        raise InvalidConfig(message("config.task", repr(name), did_you_mean(bare, TASKS), "Choose one, or leave it out"))
    if at and not level.isdigit():
        raise InvalidConfig(message("config.task", repr(name), "a level is a whole number", f"Write {bare}@1"))
    return TASKS[bare](int(level) if at else LEVELS[bare])


def prepared(config: Config, cache: Path = CACHE, seed: int | None = None) -> tuple[Config, dict[str, Any]]:
    """A configuration with a task, completed, and what the trainer is given beside it.

    What the configuration names itself stays: its policy, prompts, reward, and the length of completions where it is not
    the default.

    Args:
        config: with the key `task`.
        cache: where start policies are kept.
        seed: of the start policy; None: the run's.
    """
    made, seed = task(config.task), config.seed if seed is None else seed
    defaults = Config()
    changed: dict[str, Any] = {}
    if config.max_new_tokens == defaults.max_new_tokens:
        changed["max_new_tokens"] = made.horizon
    if not config.policy:
        changed["policy"] = str(made.start(cache, seed))
    config = dataclasses.replace(config, **changed)
    tokenizer = load_tokenizer(config.policy)
    choose = race if config.common == "race" else inverse_cdf
    law = {"temperature": config.temperature, "dtype": config.dtype, "choose": choose}
    given: dict[str, Any] = {
        "fields": made.fields(tokenizer), "generator": made.generator(tokenizer, **law), "tokenizer": tokenizer,
    }  # fmt: skip
    if not config.prompts:
        given["prompts"] = made.rows
    if config.reward == defaults.reward:
        given["reward"] = made.reward
    if not config.gold:
        given["gold"] = made.reward[0] if isinstance(made.reward, list | tuple) else made.reward
    return config, given
