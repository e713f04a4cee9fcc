"""The completions of all processes as one rollout, on common widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch

from bilevel_rl.levels.processes import Processes
from bilevel_rl.llm.sampling.rollout import Rollout


def gather(processes: Processes, mine: Rollout, prompts: Sequence[Any], pad_id: int, text: Any) -> Rollout:
    """The rollout of all processes, in rank order, on common widths.

    Args:
        processes: who they are.
        mine: this process's rows.
        prompts: prompts of all rows, which every process knows.
        pad_id: fills the padding.
        text: maps a rollout to its completions' texts.
    """
    if processes.count == 1:
        return mine
    width, horizon = processes.largest(mine.width), processes.largest(mine.horizon)
    mine = widen(mine, width, horizon, pad_id)
    numbers: dict[Any, int] = {}
    whole = Rollout(
        prompts, processes.gather(mine.ids), processes.gather(mine.attention), processes.gather(mine.lengths),
        _gathered(processes, mine.ended), processes.gather(mine.logp),
        torch.tensor([numbers.setdefault(p.ids, len(numbers)) for p in prompts], device=mine.ids.device),
        mask=processes.gather(mine.mask),
        extras={name: _gathered(processes, mine.extras[name]) for name in sorted(mine.extras)},  # in one order on all
    )  # fmt: skip
    return dataclasses.replace(whole, texts=text(whole))


def _gathered(processes: Processes, value: torch.Tensor) -> torch.Tensor:
    """A field of all rows; marks travel as bytes, which every backend can send."""
    if value.dtype == torch.bool:
        return processes.gather(value.to(torch.uint8)).bool()
    return processes.gather(value)


def widen(rollout: Rollout, width: int, horizon: int, pad_id: int) -> Rollout:
    """The same rows with more padding: prompts to `width` on the left, completions to `horizon` on the right.

    Fields found while sampling that have a number a token, [N, T, ...], are as wide as the completions and padded with 0.
    """
    left, right = width - rollout.width, horizon - rollout.horizon
    pad = torch.nn.functional.pad

    def wider(value: torch.Tensor) -> torch.Tensor:
        if value.dim() < 2 or value.shape[1] != rollout.horizon:
            return value
        return pad(value, (0, 0) * (value.dim() - 2) + (0, right))

    return dataclasses.replace(
        rollout, ids=pad(rollout.ids, (left, right), value=pad_id), attention=pad(rollout.attention, (left, right)),
        logp=pad(rollout.logp, (0, right)), mask=pad(rollout.mask, (0, right)),
        extras={name: wider(value) for name, value in rollout.extras.items()},
    )  # fmt: skip
