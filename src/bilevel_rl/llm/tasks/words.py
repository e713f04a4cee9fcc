"""Problems with one right answer as small tasks: sorting letters, and sums and differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bilevel_rl.llm.tasks import arithmetic
from bilevel_rl.llm.tasks.small import Row, SmallTask


def verified(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """1 for the right answer."""
    return arithmetic.reward(prompts, completions)


def agreeing(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """Share of characters that are right."""
    return [arithmetic.partial(p, c) for p, c in zip(prompts, completions, strict=True)]


def well_formed(prompts: Sequence[str], completions: Sequence[str], **_: object) -> list[float]:
    """1 for what could be an answer."""
    return [arithmetic.form(p, c) for p, c in zip(prompts, completions, strict=True)]


def sort(level: int = 3) -> SmallTask:
    """Sort level + 1 letters: `sort:dbca=` is answered by `abcd`."""
    return _task(f"sort@{level}", ("sort",), (level,), level + 3, ":=sortabcdefgh")


def arithmetic_task(level: int = 1) -> SmallTask:
    """Sums and differences of numbers of that many digits, up to one of two, `7+9=`; level 1 has both kinds of one digit."""
    return _task(f"arithmetic@{level}", ("add", "subtract"), tuple(range(1, level + 1)), level + 3, "0123456789+-=")


def _task(name: str, kinds: tuple[str, ...], levels: tuple[int, ...], horizon: int, symbols: str) -> SmallTask:
    known = arithmetic.generate(1500, 0, kinds=kinds, levels=levels)
    held = arithmetic.generate(256, 0, kinds=kinds, levels=levels, held_out=True)

    def rows(found: Sequence[arithmetic.Exercise]) -> list[Row]:
        return [{"prompt": p.prompt, "demonstration": p.answer, "answer": p.answer} for p in found]

    def lines(number: int, random: np.random.Generator) -> list[tuple[str, str]]:
        return [(known[i].prompt, known[i].answer) for i in random.integers(len(known), size=number)]

    return SmallTask(name, rows(known), rows(held), verified, tuple(dict.fromkeys(symbols)), horizon, lines, 0.25)
