"""Sums by steps: `3+4+8=` is answered by its running sums modulo ten and then the answer, `7;5>5`.

A step ends with `;` or `>`; what stands behind `>` is the answer, and all that is paid. Solutions are known, so rows can
begin with a part of one, and the answer can be asked for after any step (`>`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.llm.sampling.rollout import Rollout
from bilevel_rl.llm.tasks.arithmetic import is_held_out
from bilevel_rl.llm.tasks.small import Row, SmallTask

DIGITS = "0123456789"


def solution(numbers: Sequence[int]) -> str:
    """Running sums, and the answer.

    Example:
        >>> solution([3, 4, 8])
        '7;5>5'
    """
    sums = [total % 10 for total in itertools.accumulate(numbers)][1:]
    return ";".join(map(str, sums)) + f">{sums[-1]}"


def graded(prompt: str, completion: str) -> float:
    """1 where the answer behind `>` is right."""
    numbers = [int(n) for n in prompt.removesuffix("=").split("+")]
    return float(completion.partition(">")[2] == str(sum(numbers) % 10))


def reward(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """Of TRL's signature."""
    return [graded(p, c) for p, c in zip(prompts, completions, strict=True)]


def make_task(level: int = 1) -> SmallTask:
    """Sums of level + 2 numbers.

    Raises:
        InvalidConfig: a level outside 1 to 4.
    """
    if level not in (1, 2, 3, 4):
        raise InvalidConfig(message("running_sums.level", level, "levels are 1 to 4", "Choose one of these"))
    count, random = level + 2, np.random.default_rng(level)
    drawn = dict.fromkeys(tuple(int(n) for n in random.integers(10, size=count)) for _ in range(1500))
    rows: list[Row] = [
        {"prompt": "+".join(map(str, n)) + "=", "demonstration": solution(n), "answer": str(sum(n) % 10)} for n in drawn
    ]
    known = [r for r in rows if not is_held_out(r["prompt"])]

    def lines(number: int, random: np.random.Generator) -> list[tuple[str, str]]:
        return [(known[i]["prompt"], known[i]["demonstration"]) for i in random.integers(len(known), size=number)]

    return SmallTask(
        f"running_sums@{level}", known, [r for r in rows if is_held_out(r["prompt"])][:256], reward, [*DIGITS, *"+=;>"],
        2 * (count - 1) + 2, lines, 0.35, fields,
    )  # fmt: skip


def fields(tokenizer: Any) -> Mapping[str, Callable[[Rollout], Tensor]]:
    """The step of each token, and the answer of each row (10 for none)."""
    ends = torch.tensor(tokenizer.convert_tokens_to_ids([";", ">"]))

    def turn(rows: Rollout) -> Tensor:
        end = torch.isin(rows.completions, ends.to(rows.ids.device)).long()
        return end.cumsum(1) - end

    def answer(rows: Rollout) -> Tensor:
        found = [str(text).partition(">")[2] for text in rows.texts]
        return torch.tensor([int(one) if one in tuple(DIGITS) else 10 for one in found], device=rows.ids.device)

    return {"turn": turn, "answer": answer}
