"""`bilevel-rl llm judge QUEUE`: labels by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.markup import escape

from bilevel_rl.commands.llm import screen
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.launch import options


@dataclasses.dataclass(frozen=True)
class Settings:
    """Label the pairs that a run has put in a queue folder."""

    queue: Annotated[
        tyro.conf.Positional[Path], tyro.conf.arg(help="the folder after `queue:` in a run's judge")
    ]


def main(argv: Sequence[str]) -> int:
    """`judge QUEUE`: shows each open pair and reads 1, 2, t (tie) or q (quit)."""
    from bilevel_rl.llm.data.wording import as_text
    from bilevel_rl.llm.judges.builtin import HumanQueue

    folder = options.parse("llm judge", Settings, argv).queue
    if not folder.is_dir():
        raise InvalidConfig(
            message(
                str(folder),
                "no such folder",
                "a queue is the folder after `queue:` in a run's judge",
                "Check the path",
            )
        )
    queue, console = HumanQueue(folder), screen.console()
    open_pairs = list(queue.pending())
    if not open_pairs:
        console.print("no pairs wait for a label")
        return 0
    console.print("which is better?  1, 2, t: tie, q: quit (labels given so far are kept)")
    for i, row in enumerate(open_pairs):
        console.print(f"\n[bold]{i + 1} of {len(open_pairs)}[/]  {escape(as_text(row['prompt']))}")
        for number, text in enumerate(row["completions"], start=1):
            console.print(f"  {number}: {escape(as_text(text))}")
        answer = _ask()
        if answer is None:
            console.print(f"{len(open_pairs) - i} pairs still wait")
            return 0
        queue.answer(row["id"], answer)
    console.print("all labelled; go on with: bilevel-rl llm resume RUN")
    return 0


def _ask() -> int | None:
    """A label from the terminal, or None to quit."""
    while True:
        try:
            text = input("> ").strip().lower()
        except EOFError:
            return None
        if text in ("q", "quit"):
            return None
        if text in ("1", "2", "t"):
            return {"1": 0, "2": 1, "t": -1}[text]
        print("answer 1, 2, t or q")
