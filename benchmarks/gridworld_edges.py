"""What lies beyond the edges of the search's ranges, for every choice that stands at one.

    python benchmarks/gridworld_edges.py [--methods "as published" ...]

`gridworld_search.py` says which constants of a chosen setting lie at an end of their range. Here each of them goes on
beyond that end, one at a time, the rest of the setting the same: to twice and four times (half and a quarter) the last
value, a list to its next value; a critic's step no further than 1.9, where the search's own ranges end. Graded as the
search's second stage is: 5 tuning seeds, 1 million transitions, plain mean. The rule, for all methods alike: where something
beyond an edge is better than the chosen setting by more than `GAIN` of the best known value, the row is to be searched again
in wider ranges (`gridworld_search.py --searches 2`). Nothing here is a row of the table. Writes
`results/gridworld_edges.json`, a row at a time: a second call goes on. A third of a minute of processor time a row, 1 core.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import gridworld_search as search
import jax
import jax.numpy as jnp

from bilevel_rl import records
from bilevel_rl.experiments.gridworld import problems
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "gridworld_edges.json"
PARTS = ("position", "distribution")
FACTORS = (2.0, 4.0)
GAIN = 0.01  # of |best known value|: a fifth of what a success may miss
SHAPES = ("chains", "inner", "perturbation")  # each is a program of its own
CRITIC = 1.9  # a critic's step stays below 2, where it is stable


def beyond(ranges: dict[str, Any], setting: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Constant at an edge -> the setting with that constant beyond it; an empty list where nothing may lie beyond."""
    found = {}
    for name, end in search.edges(ranges, setting).items():
        if name in search.LISTS:
            values = [search.further(name, end, ranges[name])]
        else:
            last = ranges[name][0 if end == "low" else 1]
            values = [last / factor if end == "low" else last * factor for factor in FACTORS]
        if name == "beta":
            values = [v for v in values if v <= CRITIC]
        found[name] = [setting | {name: v} for v in values]
    return found


def read_ranges(written: dict[str, Any]) -> dict[str, Any]:
    """Ranges as the search's functions take them, from what its file says."""
    return {name: v["one of"] if isinstance(v, dict) else tuple(v) for name, v in written.items()}


def graded(problem: Any, method: search.Method, settings: list[dict[str, Any]]) -> list[float | None]:
    """The search's second stage, settings of one shape side by side."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for i, setting in enumerate(settings):
        groups.setdefault(tuple(setting.get(name) for name in SHAPES), []).append(i)
    found: list[float | None] = [None] * len(settings)
    for indices in groups.values():
        values = search.scores(problem, method, [settings[i] for i in indices], search.SECOND, len(indices))
        for i, value in zip(indices, values, strict=True):
            found[i] = value
    return found


def examined(problem: Any, label: str, chosen: dict[str, Any], best: float) -> dict[str, Any]:
    """One row: its choice again, and what lies beyond each of its edges."""
    began = time.process_time()
    further = beyond(read_ranges(chosen["ranges"]), chosen["chosen"])
    tried = [(name, setting) for name, settings in further.items() for setting in settings]
    scores = graded(problem, search.ALL[label], [chosen["chosen"], *(setting for _, setting in tried)])
    base = scores[0]
    at_edge = {
        name: {
            "end": chosen["edges"][name], "value": chosen["chosen"][name],
            "beyond": [[s[name], v] for (n, s), v in zip(tried, scores[1:], strict=True) if n == name],
        }
        for name in further
    }  # fmt: skip
    gains = [base - v for v in scores[1:] if v is not None]
    gain = max(gains, default=0.0) / abs(best)
    return {
        "score": base, "edges": at_edge, "gain": round(gain, 5), "search again": gain > GAIN,
        "seconds": round(time.process_time() - began, 1),
    }  # fmt: skip


def main() -> None:
    """Fill what is missing: every searched row whose choice stands at an edge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="*", default=list(search.METHODS), choices=list(search.METHODS))
    asked = parser.parse_args()
    optima = records.read_json(RESULTS.parent / "gridworld_optima.json")["optima"]
    rows: dict[str, Any] = records.read_json(RESULTS)["rows"] if RESULTS.exists() else {}
    for part in PARTS:
        problem = jax.tree.map(jnp.asarray, problems()[part])
        for label in asked.methods:
            key = f"{part} | {label}"
            searches = search.stored().get(key, {"searches": []})["searches"]
            if not searches or key in rows or not searches[0]["edges"]:
                continue
            rows[key] = examined(problem, label, searches[0], optima[part]["value"])
            print(key, rows[key], flush=True)
            records.write_json(RESULTS, {
                "rows": rows, "gain": GAIN, "transitions": search.SECOND, "tuning runs": search.TUNING_RUNS,
                "hardware": records.hardware(), "provenance": records.provenance("python benchmarks/gridworld_edges.py"),
            })  # fmt: skip


if __name__ == "__main__":
    main()
