"""`bilevel-rl llm resume RUN`: go on from the last checkpoint, to the bits of an uninterrupted run."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from bilevel_rl import versions
from bilevel_rl.commands.llm import happy_tweets, screen, train
from bilevel_rl.experiments import happy_tweets as experiment
from bilevel_rl.launch import options
from bilevel_rl.llm.config import Config
from bilevel_rl.records import read_json


@dataclasses.dataclass(frozen=True)
class Settings:
    """Go on with a run from its last checkpoint, to the same bits as if it had never stopped."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(help="folder of the run")]
    steps: Annotated[int, tyro.conf.arg(help="new last iteration; 0 keeps the run's own")] = 0
    accept_versions: Annotated[
        bool, tyro.conf.arg(help="go on under other versions than it was begun with, and write that down")
    ] = False


def main(argv: Sequence[str]) -> int:
    """`resume RUN [--steps N]`."""
    given = options.parse("llm resume", Settings, argv)
    versions.accept(given.accept_versions)
    if (given.run.parent / "experiment.json").exists():
        return _experiment(given.run.parent)
    header = read_json(given.run / "run.json")
    values = {**header["config"], "out": str(given.run)}
    if given.steps:
        values["steps"] = given.steps
    return train.run(Config.from_dict(values, where=str(given.run / "run.json")), resume=True)


def _experiment(folder: Path) -> int:
    saved = read_json(folder / "experiment.json")
    settings = experiment.read_settings(saved["settings"], out=folder, data=saved["data"] or None)
    experiment.run(settings, screen.bar)
    happy_tweets.show(folder)
    return 0
