"""Do the rows of the paper's GridWorld stay where they have arrived? The chosen settings to 10 million transitions.

    python benchmarks/gridworld_longer.py [--rows "as published" ...] [--runs 10]

The search's own runs end at 3 million (`gridworld_search.py`). Here the first 10 of their 30 seeds go on to 10 million, from
the start and with the same random numbers, at the same 20 log-spaced budgets; the first 15 records must be those of the
search, and how far they differ is written beside each row. Nothing is chosen here. Writes `results/gridworld_longer.json`, a
row at a time: a second call goes on. Five minutes of processor time, 1 core.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import gridworld_search as search
import jax
import jax.numpy as jnp
import numpy as np
from gridworld import row

from bilevel_rl import records
from bilevel_rl.experiments.gridworld import problems
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "gridworld_longer.json"
ROWS = (
    "as published", "+ common random numbers", "+ steady followers and w", "+ its exponents", "nested_penalty, as published",
)  # fmt: skip
PARTS = ("position", "distribution")


def main() -> None:
    """Fill what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="*", default=list(ROWS), choices=list(search.METHODS))
    parser.add_argument("--runs", type=int, default=10, help="seeds, the first of the search's 30")
    asked = parser.parse_args()
    optima = records.read_json(RESULTS.parent / "gridworld_optima.json")["optima"]
    budgets = [int(b) for b in search.BUDGETS]
    cells: dict[str, Any] = records.read_json(RESULTS)["cells"] if RESULTS.exists() else {}
    for label in asked.rows:
        for part in PARTS:
            key = f"{part} | {label}"
            if key in cells:
                continue
            problem, known = jax.tree.map(jnp.asarray, problems()[part]), search.stored()[key]["final"]
            solver = search.made(search.METHODS[label], problem, known["setting"])
            x = search.run(problem, [solver], search.SEED, asked.runs, budgets)[0]
            hard = search.grade(problem, x)
            final = {
                "budgets": budgets, "unregularised": hard.round(5).tolist(),
                "regularised": search.grade(problem, x, search.TAU).tolist(), "setting": known["setting"],
            }  # fmt: skip
            before = np.array(known["unregularised"])[: asked.runs]
            cells[key] = row(final, optima[part]) | {
                "differs from the search's records": float(np.abs(hard[:, : before.shape[1]] - before).max())
            }
            print(key, cells[key]["within"], cells[key]["differs from the search's records"], flush=True)
            records.write_json(RESULTS, {
                "cells": cells, "hardware": records.hardware(),
                "provenance": records.provenance("python benchmarks/gridworld_longer.py"),
            })  # fmt: skip


if __name__ == "__main__":
    main()
