"""What the benchmarks of neural followers share: cells that are filled once, and the file that holds them."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bilevel_rl import records

FOLDER, BETWEEN = Path(__file__).parent / "results", " | "


def parser(document: str | None, seeds: int = 10) -> argparse.ArgumentParser:
    """The options that all of them take: how many seeds, and how many new cells in this call."""
    made = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--seeds", type=int, default=seeds)
    made.add_argument("--cells", type=int, default=99, help="new ones at most in this call")
    return made


def settings(leader: Any, seeds: int, **others: Any) -> dict[str, Any]:
    """What a table was made with: a leader's first step beside what is given."""
    return {**others, "zeta": leader.zeta.initial, "seeds": seeds}


def read(name: str) -> dict[str, Any]:
    """What is there of a benchmark: its facts, `cells` among them."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"cells": {}}


def write(name: str, facts: dict[str, Any], note: str, heads: Sequence[str], rows: list[list[str]], setting: dict) -> None:
    """Facts with a table, where and by what it was measured."""
    facts |= {"note": note, "heads": [*heads], "rows": rows, "setting": setting, "hardware": records.hardware(),
              "command": f"python benchmarks/{name}.py"}  # fmt: skip
    (FOLDER / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")


def named(*words: str) -> str:
    """The key of a cell: what it was measured on, with what, by what; as many words as a table needs."""
    return BETWEEN.join(words)


def filled(facts: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Cells that are there: the words of each key, and its facts last."""
    for key, cell in facts["cells"].items():
        yield (*key.split(BETWEEN), cell)


def missing(facts: dict[str, Any], work: Iterable[str], most: int) -> list[str]:
    """Keys of what there is to measure and that no earlier call has filled, so many at most."""
    return [key for key in work if key not in facts["cells"]][:most]
