"""`bilevel-rl resume FOLDER`: go on from the last checkpoint, to the bits of an uninterrupted run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from bilevel_rl import records, versions
from bilevel_rl.commands import screen, unfinished
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.launch import limits, options

arg = tyro.conf.arg


@dataclasses.dataclass(frozen=True)
class Settings:
    """Go on with a stopped run, search, comparison or sweep. What is finished stays, unless a run is asked for more."""

    folder: Annotated[tyro.conf.Positional[Path], arg(help="folder of a run, a search, a comparison or a sweep")]
    samples: Annotated[int | None, arg(help="a larger budget for a run: transitions from its start on")] = None
    iterations: Annotated[int | None, arg(help="likewise in iterations")] = None
    tensorboard: Annotated[bool, arg(help="also write TensorBoard events")] = False
    accept_versions: Annotated[
        bool, arg(help="go on under other versions than it was begun with, and write that down")
    ] = False
    loggers: Annotated[tuple[str, ...], arg(help="tensorboard, wandb, trackio: write there as well")] = ()


def main(argv: Sequence[str]) -> int:
    """Resume what the folder holds."""
    given = options.parse("resume", Settings, argv)
    limits.check("resume", given)
    versions.accept(given.accept_versions)
    limits.place("bilevel-rl resume", str(given.folder))
    more = given.samples is not None or given.iterations is not None
    kind = unfinished.kind(given.folder)
    if more and kind is not None:
        raise InvalidConfig(
            message("bilevel-rl resume", f"a larger budget for a {kind}", "a run can be made longer", "Start a new one")
        )
    if (given.folder / "search.json").exists():
        from bilevel_rl.commands import search

        return search.resume(given.folder)
    if kind is not None:
        return unfinished.resume(given.folder)
    if records.read_header(given.folder)["kind"] == "llm":
        from bilevel_rl.commands import llm  # Torch is imported when it is asked for

        return llm.main(["resume", str(given.folder)])
    from bilevel_rl.launch import execute

    if more:
        execute.longer(given.folder, given.samples, given.iterations)
    elif screen.read_status(given.folder).get("state") == "finished":
        print(f"{given.folder}: finished already; nothing to do, or ask for more with --samples N")
        return 0
    ready, ask = execute.again(given.folder)
    return screen.show_run(ready, ask, given.folder, resume=True, loggers=screen.loggers(given))
