"""The iterated prisoner's dilemma between two rows: the policy plays itself, and each row sees what the other has done.

The prompt says how many rounds there are, `r4:`; a row writes C or D, the world answers with the other's choice of the same
round, c or d. Rows meet in pairs, in the order in which they are written, so the number of rows a prompt is even.

    r3:CdDdDd.      cooperates, is cheated, and defects from then on; the last word is no choice
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.sampling.rollout import Rollout
from bilevel_rl.llm.tasks.small import Row, SmallTask, symbols_tokenizer
from bilevel_rl.policy_gradient.segments import segment_mean

ROUNDS = (2, 3, 4, 5, 6)
PAYOFF = {"Cc": 0.6, "Cd": 0.0, "Dc": 1.0, "Dd": 0.2}  # one's own, in the first player's eyes


def payoffs(written: str) -> list[tuple[float, float]]:
    """One's own and the other's payoff of each round that a row shows; a choice that is neither counts as D.

    Example:
        >>> payoffs("CdDd.")
        [(0.0, 1.0), (0.2, 0.2)]
    """
    found = []
    for mine, other in zip(written[::2], written[1::2], strict=False):
        one, two = (mine if mine in "CD" else "D"), (other if other in "cd" else "d")
        found.append((PAYOFF[one + two], PAYOFF[two.upper() + one.lower()]))
    return found


class Meeting:
    """The other player as a `World`: rows 0 and 1 of a call meet, 2 and 3, and so on."""

    def __init__(self, tokenizer: Any) -> None:
        self.ids = {s: tokenizer.convert_tokens_to_ids(s) for s in "CDcd"}
        self.words = {i: s for s, i in self.ids.items()}

    def text(self, ids: Sequence[int]) -> str:
        """One character a token; `?` for tokens that are no choice."""
        return "".join(self.words.get(int(i), "?") for i in ids)

    def reply(self, prompts: Sequence[Prompt], written: Sequence[Sequence[int]]) -> list[Sequence[int] | None]:
        """See `World`.

        Raises:
            InvalidConfig: rows that can't be paired.
        """
        if len(prompts) % 2 or any(a.text != b.text for a, b in zip(prompts[::2], prompts[1::2], strict=True)):
            raise InvalidConfig(
                message("prisoners", "rows that don't come in pairs", "each row meets another of its prompt",
                        "Set sampling.group to an even number, and leave rollouts that go on from prefixes out")
            )  # fmt: skip
        answers: list[Sequence[int] | None] = []
        for i, (prompt, ids) in enumerate(zip(prompts, written, strict=True)):
            other = self.text(written[i ^ 1])
            if len(ids) > 2 * rounds(prompt.text):  # the policy's last word: a row ends with its own
                answers.append(None)
            elif len(ids) % 2:
                choice = other[len(ids) - 1]
                answers.append([self.ids[choice.lower() if choice in "CD" else "d"]])
            else:
                answers.append(())
        return answers


def rounds(prompt: str) -> int:
    """Of a game."""
    return int(prompt[1])


SYMBOLS = (*"CDcdr:.", *map(str, ROUNDS))


def reward(
    prompts: Sequence[str], completions: Sequence[str], completion_ids: Sequence[Sequence[int]] | None = None, **_: object
) -> list[float]:
    """Mean payoff a round."""
    # text leaves special tokens out, which would move what comes after them
    meeting = Meeting(symbols_tokenizer(SYMBOLS))
    rows = completions if completion_ids is None else [meeting.text(ids) for ids in completion_ids]
    return [float(np.mean([own for own, _ in payoffs(row)] or [0.0])) for row in rows]


def make_task(level: int = 1) -> SmallTask:
    """Games of 2 to 6 rounds; there is one level.

    Raises:
        InvalidConfig: another level.
    """
    if level != 1:
        raise InvalidConfig(message("prisoners.level", level, "there is one level", "Write prisoners"))
    rows: list[Row] = [{"prompt": f"r{n}:"} for n in ROUNDS]

    def lines(number: int, random: np.random.Generator) -> list[tuple[str, str]]:
        found = []
        for n in random.choice(ROUNDS, size=number):
            choices = random.choice(list("CD"), size=n), random.choice(list("cd"), size=n)
            found.append((f"r{n}:", "".join(a + b for a, b in zip(*choices, strict=True)) + "."))
        return found

    return SmallTask(
        "prisoners@1", rows, rows, reward, SYMBOLS, 2 * max(ROUNDS) + 1, lines, 0.3, fields,
        Meeting,
    )  # fmt: skip


def fields(tokenizer: Any) -> Mapping[str, Callable[[Rollout], Tensor]]:
    """The round of each token, and the other player's advantage: its earnings from that round on, less the prompt's mean."""
    meeting = Meeting(tokenizer)

    def turn(rows: Rollout) -> Tensor:
        return (torch.arange(rows.horizon, device=rows.ids.device) // 2).expand(rows.size, -1)

    def other_advantage(rows: Rollout) -> Tensor:
        to_go = torch.zeros(rows.size, rows.horizon)
        for i, ids in enumerate(rows.completion_ids()):
            gains = [other for _, other in payoffs(meeting.text(ids))]
            for u in range(len(gains)):
                to_go[i, 2 * u : 2 * u + 2] = sum(gains[u:]) / len(gains)
        group = rows.group.cpu()
        mean = segment_mean(to_go, group, int(group.max()) + 1)[group]
        return (to_go - mean).to(rows.logp)

    return {"turn": turn, "other_advantage": other_advantage}
