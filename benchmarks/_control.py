"""What the benchmarks of neural followers share: cells that are filled once, and the file that holds them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bilevel_rl import records

FOLDER = Path(__file__).parent / "results"


def read(name: str) -> dict[str, Any]:
    """What is there of a benchmark: its facts, `cells` among them."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else {"cells": {}}


def write(name: str, facts: dict[str, Any], note: str, heads: Sequence[str], rows: list[list[str]], setting: dict) -> None:
    """Facts with a table, where and by what it was measured."""
    facts |= {"note": note, "heads": [*heads], "rows": rows, "setting": setting, "hardware": records.hardware(),
              "command": f"python benchmarks/{name}.py"}  # fmt: skip
    (FOLDER / f"{name}.json").write_text(json.dumps(facts, indent=1) + "\n")
