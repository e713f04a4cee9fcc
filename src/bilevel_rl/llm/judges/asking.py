"""Asking a judge: which pairs, with retries, and a check of every answer."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import BilevelError, message
from bilevel_rl.levels.labels import LabelsPending, choose_pairs
from bilevel_rl.llm.sampling.rollout import Rollout

__all__ = ["JudgeFailed", "LabelsPending", "ask", "choose_pairs"]
log = logging.getLogger(__name__)
ATTEMPTS = 3  # ours: a judge behind a network fails now and then; one that fails three times is broken


class JudgeFailed(BilevelError, RuntimeError):
    """A judge raised or answered nonsense on every attempt; the run's last checkpoint stays."""


def ask(judge: Any, rollout: Rollout, pairs: Tensor) -> Tensor:
    """[M] 0 or 1, the preferred completion of each pair, or -1 where the judge gives no answer.

    Args:
        judge: an object with TRL's `judge(prompts, completions, shuffle_order=...)`, or such a callable.
        rollout: the completions.
        pairs: [M, 2] rows.

    Raises:
        JudgeFailed: an exception, or an answer of the wrong length or value, three times over.
        LabelsPending: passed on from the judge.
    """
    if not len(pairs):
        return torch.empty(0, dtype=torch.long)
    call: Callable[..., Sequence[int]] = judge.judge if hasattr(judge, "judge") else judge
    prompts = [rollout.prompts[i].text for i in pairs[:, 0].tolist()]
    completions = [[_plain(rollout.texts[i]), _plain(rollout.texts[j])] for i, j in pairs.tolist()]
    name = (
        type(judge).__name__ if hasattr(judge, "judge") else getattr(judge, "__name__", type(judge).__name__)
    )
    failure: tuple[str, str] = ("", "")
    cause: Exception | None = None
    for attempt in range(1, ATTEMPTS + 1):
        try:
            answers = list(call(prompts, completions, shuffle_order=False))
        except LabelsPending:
            raise
        except Exception as error:
            failure, cause = (
                (f"{type(error).__name__} ({error})", "a judge returns one answer for each pair"),
                error,
            )
        else:
            if len(answers) != len(pairs):
                failure = (f"{len(answers)} answers for {len(pairs)} pairs", "one answer for each pair")
            else:
                bad = [a for a in answers if isinstance(a, bool) or a not in (-1, 0, 1)]
                if not bad:
                    return torch.tensor([int(a) for a in answers])
                failure = (f"the answer {bad[0]!r}", "an answer is 0, 1, or -1 for none")
            cause = None
        log.warning("judge %s failed (attempt %d of %d): %s", name, attempt, ATTEMPTS, failure[0])
    raise JudgeFailed(
        message(f"judge {name}", f"{failure[0]}, {ATTEMPTS} times", failure[1],
                "Mend the judge, then continue with `bilevel-rl llm resume`: nothing before this step is lost")
    ) from cause  # fmt: skip


def _plain(text: Any) -> Any:
    """A judge receives text: the content of an assistant's message."""
    if isinstance(text, list) and text and isinstance(text[0], dict):
        return text[0]["content"]
    return text
