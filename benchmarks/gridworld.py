"""The README's table and figure: the GridWorld experiment, 30 seeds, as `bilevel-rl experiments gridworld` runs it.

    python benchmarks/gridworld.py [FOLDER]

Runs the experiment into FOLDER (runs/gridworld by default; what is finished there is reused) and writes
`results/gridworld.json` and `docs/assets/gridworld.svg`.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from bilevel_rl import records
from bilevel_rl.commands import screen
from bilevel_rl.experiments import gridworld
from bilevel_rl.report import collect, export, tables

ROOT = Path(__file__).parents[1]


def main() -> None:
    """Run, write the numbers, draw the figure."""
    folder = gridworld.run(
        gridworld.Settings(out=Path(sys.argv[1] if len(sys.argv) > 1 else "runs/gridworld")), screen.progress
    )
    (section,) = collect.sections([folder])
    heads, rows, note = tables.results(section)
    run = section.methods[0].runs[0]
    records.write_json(ROOT / "benchmarks/results/gridworld.json", {
        "heads": heads, "rows": rows, "note": note, "settings": {m.label: m.settings for m in section.methods},
        "hardware": run.provenance["hardware"],
        "provenance": {key: run.provenance[key] for key in ("time", "python", "versions")}
        | {"command": "bilevel-rl experiments gridworld"},
    })  # fmt: skip
    with tempfile.TemporaryDirectory() as drawn:
        export([folder], drawn, "svg")
        shutil.copy(Path(drawn) / f"{gridworld.PROBLEM}-objective.svg", ROOT / "docs/assets/gridworld.svg")


if __name__ == "__main__":
    main()
