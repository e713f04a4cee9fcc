"""`bilevel-rl llm export RUN`: what other tools load."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from bilevel_rl.commands.llm import screen
from bilevel_rl.launch import options


@dataclasses.dataclass(frozen=True)
class Settings:
    """Policy, reward, tokenizer and model cards of a run at its last checkpoint."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="folder of the run")]
    out: Annotated[Path | None, tyro.conf.arg(help="folder to write; by default RUN/export")] = None
    checkpoint: Annotated[str, tyro.conf.arg(help="last, best, or the iteration of one that is kept")] = "last"


def main(argv: Sequence[str]) -> int:
    """`export RUN [--out FOLDER]`."""
    from bilevel_rl.llm import export

    given = options.parse("llm export", Settings, argv)
    written = export.export(export.restore(given.run, checkpoint=given.checkpoint), given.out or given.run / "export")
    for part, path in written.items():
        screen.console().print(f"{part}: {path}", highlight=False, soft_wrap=True)
    return 0
