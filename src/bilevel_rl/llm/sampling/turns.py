"""Rows that interleave what the policy writes with what a world answers: multi-turn tasks as completions.

A world is a pure function of what has been written, so a row can be gone on from at any of the policy's own tokens, and
nothing of an episode has to be kept. What it answers is *given*: read by every model, no one's choice (`Rollout.mask`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from bilevel_rl.llm.data.prompts import Begun, Prompt
from bilevel_rl.llm.forward import precision, without
from bilevel_rl.llm.sampling.decoding import make_decoder
from bilevel_rl.llm.sampling.rollout import Rollout, assemble, pad_prompts
from bilevel_rl.llm.sampling.sampler import check_logits, inverse_cdf


class World(Protocol):
    """What answers a policy."""

    def reply(self, prompts: Sequence[Prompt], written: Sequence[Sequence[int]]) -> list[Sequence[int] | None]:
        """What follows the tokens that stand in each row.

        Args:
            prompts: one a row.
            written: tokens so far, the policy's and the world's; of rows of one call, so that rows can meet each other.

        Returns:
            for each row: what the world writes next, () where it is the policy's turn, None where the episode is over.
        """
        ...


class TurnSampler:
    """A generator of completions in a world.

    Args:
        world: answers.
        pad_id: fills the padding.
        temperature, tokenizer, dtype, unheld, choose: as for `Sampler`.

    Attributes:
        together: as for `Sampler`; a trainer sets it.
    """

    def __init__(
        self, world: World, pad_id: int = 0, temperature: float = 1.0, tokenizer: Any = None, dtype: str = "float32",
        unheld: Tensor | None = None, choose: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = inverse_cdf,
    ) -> None:  # fmt: skip
        self.world, self.pad_id, self.temperature = world, pad_id, temperature
        self.tokenizer, self.dtype, self.unheld, self.choose = tokenizer, dtype, unheld, choose
        self.together: Callable[[bool], bool] = bool

    @torch.no_grad()
    def __call__(self, model: Any, prompts: Sequence[Prompt], uniforms: Tensor) -> Rollout:
        """One episode of each prompt; see `Generator`. A row that the horizon cuts ends with the policy's last token."""
        device = next(model.parameters()).device
        rows, horizon = uniforms.shape
        uniforms = uniforms.to(device)
        ids, attention = pad_prompts(prompts, self.pad_id, device)
        episodes = _Episodes(self.world, prompts)
        decoder = make_decoder(model, horizon)
        tokens, logps, given = [], [], []
        with precision(self.dtype, device):
            logits = decoder.start(ids, attention)
            for t in range(horizon):
                logits = without(logits.float() if logits.dtype == torch.bfloat16 else logits, self.unheld)
                token, logp = self.choose(
                    logits if self.temperature == 1 else logits / self.temperature, uniforms[:, t]
                )
                own = episodes.acting()
                column = episodes.take(token.tolist())
                mine = torch.tensor(own, device=device)
                tokens.append(torch.tensor([self.pad_id if c is None else c for c in column], device=device))
                logps.append(torch.where(mine, logp, 0.0))
                given.append(~mine)
                if self.together(all(episodes.ended)):
                    break
                if t + 1 < horizon:
                    logits = decoder.next(tokens[-1])
        logp, observed = torch.stack(logps, 1), torch.stack(given, 1)
        check_logits(model, logp)
        lengths = torch.where(~observed, torch.arange(1, len(given) + 1, device=device), 0).amax(1)
        real = torch.arange(len(given), device=device) < lengths[:, None]
        return assemble(
            prompts, ids, attention, torch.stack(tokens, 1), lengths, torch.tensor(episodes.ended, device=device),
            logp, tokenizer=self.tokenizer, given=observed & real,
        )  # fmt: skip

    def observed(self, prompt: Prompt, ids: Sequence[int]) -> list[bool]:
        """Which tokens of a whole row the world has written, for rows that were not sampled (demonstrations)."""
        found: list[bool] = []
        while len(found) < len(ids):
            (answer,) = self.world.reply([prompt], [ids[: len(found)]])
            found += [True] * len(answer) if answer else [False]
        return found[: len(ids)]


class _Episodes:
    """The rows of one call: what stands in each, and what the world has still to say."""

    def __init__(self, world: World, prompts: Sequence[Prompt]) -> None:
        self.world = world
        self.prompts = [p.whole if isinstance(p, Begun) else p for p in prompts]
        self.written = [list(p.begun) if isinstance(p, Begun) else [] for p in prompts]
        self.said: list[deque[int]] = [deque() for _ in prompts]
        self.ended = [False] * len(prompts)
        self._ask(range(len(prompts)))

    def acting(self) -> list[bool]:
        """Rows in which the next token is the policy's."""
        return [not over and not said for over, said in zip(self.ended, self.said, strict=True)]

    def take(self, drawn: Sequence[int]) -> list[int | None]:
        """The next token of each row, drawn or given; None where the episode is over."""
        column: list[int | None] = []
        for i, token in enumerate(drawn):
            column.append(None if self.ended[i] else self.said[i].popleft() if self.said[i] else token)
        for row, one in zip(self.written, column, strict=True):
            if one is not None:
                row.append(one)
        self._ask([i for i, one in enumerate(column) if one is not None and not self.said[i]])
        return column

    def _ask(self, rows: Sequence[int]) -> None:
        if not rows:
            return
        answers = self.world.reply([self.prompts[i] for i in rows], [self.written[i] for i in rows])
        for i, answer in zip(rows, answers, strict=True):
            if answer is None:
                self.ended[i] = True
            else:
                self.said[i].extend(answer)
