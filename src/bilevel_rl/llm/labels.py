"""Judges and gold scorers of text, as the leader of `levels` asks them; pairs are kept as prompts and token ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from bilevel_rl.levels.labels import Labels
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.judges.asking import ask
from bilevel_rl.llm.rewards.functions import call_reward_function
from bilevel_rl.llm.sampling.rollout import Rollout, from_pairs
from bilevel_rl.llm.setup import Pair


class TextLabels(Labels):
    """A judge of pairs and a scorer of completions.

    Args:
        judge, gold: whom to ask; None where f needs neither.
        stored: preference pairs known from the start.
        prompts: of the run: a kept pair has their text again after a checkpoint.
        pad_id, tokenizer, device: of completions made from pairs.
        cost: scorer of a constraint's costs, or None.
    """

    def __init__(
        self, judge: Any, gold: Callable[..., Sequence[float]] | None, stored: Sequence[Pair], prompts: Sequence[Prompt],
        pad_id: int, tokenizer: Any, device: Any, cost: Callable[..., Sequence[float]] | None = None,
    ) -> None:  # fmt: skip
        self.coster = cost
        self.judge, self.scorer, self.stored = judge, gold, stored
        self.pad_id, self.tokenizer, self.device = pad_id, tokenizer, device
        self.known = {p.ids: p for p in prompts}

    @property
    def overlaps(self) -> bool:
        """See `Labels`."""
        return bool(getattr(self.judge, "overlaps", False))

    def answers(self, rows: Rollout, pairs: Tensor) -> Tensor:
        """See `Labels`."""
        return ask(self.judge, rows, pairs)

    def contents(self, rows: Rollout) -> Sequence[Any]:
        """See `Labels`."""
        return rows.texts

    def gold(self, rows: Rollout) -> Tensor | None:
        """See `Labels`."""
        return None if self.scorer is None else call_reward_function(self.scorer, rows, "gold")

    def cost(self, rows: Rollout) -> Tensor | None:
        """See `Labels`."""
        return None if self.coster is None else call_reward_function(self.coster, rows, "cost")

    def kept(self, rows: Rollout, pairs: Tensor) -> list[Pair]:
        """See `Labels`."""
        ids = rows.completion_ids()
        return [(rows.prompts[i], tuple(ids[i]), tuple(ids[j])) for i, j in pairs.tolist()]

    def rows(self, pairs: Sequence[Pair]) -> tuple[Rollout, Rollout]:
        """See `Labels`."""
        first, second = (
            from_pairs(side, self.pad_id, self.device, self.tokenizer)
            for side in ([(p, a) for p, a, _ in pairs], [(p, b) for p, _, b in pairs])
        )
        return first, second

    def dump(self, pairs: Sequence[Pair]) -> list[Any]:
        """See `Labels`."""
        return [[list(p.ids), list(a), list(b)] for p, a, b in pairs]

    def load(self, values: Sequence[Any]) -> list[Pair]:
        """See `Labels`."""
        return [
            (self.known.get(tuple(p), Prompt(tuple(p), list(p))), tuple(a), tuple(b)) for p, a, b in values
        ]
