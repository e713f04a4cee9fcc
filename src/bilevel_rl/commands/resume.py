"""`bilevel-rl resume FOLDER`: go on from the last checkpoint, to the bits of an uninterrupted run."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from bilevel_rl import records
from bilevel_rl.commands import screen, search
from bilevel_rl.launch import execute, options
from bilevel_rl.loop import search_folder


@dataclasses.dataclass(frozen=True)
class Settings:
    """Go on with a stopped run or search. A finished one is left as it is."""

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="folder of a run or a search")]
    tensorboard: Annotated[bool, tyro.conf.arg(help="also write TensorBoard events")] = False


def main(argv: Sequence[str]) -> int:
    """Resume a run or a search."""
    given = options.parse("resume", Settings, argv)
    if (given.folder / search_folder.HEADER).exists():
        return search.resume(given.folder)
    if records.read_header(given.folder)["kind"] == "llm":
        commands = importlib.import_module("bilevel_rl.llm.commands")
        return int(commands.main(["resume", str(given.folder)]) or 0)
    if screen.read_status(given.folder).get("state") == "finished":
        print(f"{given.folder}: finished already; nothing to do")
        return 0
    ready, ask = execute.again(given.folder)
    return screen.show_run(ready, ask, given.folder, resume=True, tensorboard=given.tensorboard)
