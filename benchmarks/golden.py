"""Golden traces: what every solver did, number by number, so that a change of structure can prove it changed nothing.

    python benchmarks/golden.py --write      # run everything and replace tests/golden/finite.json
    python benchmarks/golden.py --compare    # run everything and compare, bit for bit; exit 1 on any difference

Bits are the same on one machine with one version of JAX only. `tests/golden/test_golden.py` reads the same file with a
tolerance that the rounding of other machines passes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import records
from bilevel_rl.finite import multistart, solve
from bilevel_rl.finite.problems import GoalPlacement, PreferenceLearning
from bilevel_rl.finite.solvers import ALL, HPGD, CoupledPenalty, ExactDescent, PenaltyActorCritic, SoBiRL
from bilevel_rl.loop import use_64_bit

use_64_bit()

FILE = Path(__file__).parent.parent / "tests" / "golden" / "finite.json"
ITERATIONS, RECORDS, RUNS = 12, 3, 2  # ours: enough for every part of a solver to act, little enough to run everything


def problems() -> dict[str, Any]:
    """A grid with an upper objective linear in the visitation, and preference data."""
    return {"goal_placement": GoalPlacement(rows=4, columns=4), "preference_learning": PreferenceLearning()}


def traced(problem: Any, solver: Any, graded: bool = False) -> dict[str, Any]:
    """A run as numbers: x, every metric, and what happened; by oracles too when graded, which takes most of the time."""
    trace = solve(
        problem, solver, iterations=ITERATIONS, record_every=ITERATIONS // RECORDS, runs=RUNS, seed=3, evaluate=graded
    )
    return {**{key: v.tolist() for key, v in trace.metrics.items()}, "x": trace.x.tolist(), "status": trace.status.tolist()}


def searched(problem: Any, solver: Any, **options: Any) -> dict[str, Any]:
    """A search as numbers."""
    found = multistart.search(problem, solver, starts=6, eta=2, seed=5, **options)
    return {
        "x": found.xs.tolist(), "chosen": found.chosen, "score": found.score.tolist(), "samples": found.samples,
        "status": found.status.tolist(), "objective": found.metrics["objective"].tolist(),
    }  # fmt: skip


def cases() -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """(name, what runs it): every solver, those that sample another objective, grading, and a search."""
    grid, data = problems().values()
    for kind in ALL:
        yield f"{kind.name}/goal_placement", lambda kind=kind: traced(grid, kind())
    for kind in (PenaltyActorCritic, CoupledPenalty, HPGD, SoBiRL):
        yield f"{kind.name}/preference_learning", lambda kind=kind: traced(data, kind())
    for kind in (PenaltyActorCritic, ExactDescent):
        yield f"{kind.name}/graded", lambda kind=kind: traced(grid, kind(), graded=True)
    yield "search/by_model", lambda: searched(grid, HPGD(horizon=20), samples=40_000, by="model")


def differences(old: Any, new: Any, where: str = "") -> list[str]:
    """Every number that is not the same, with its place."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted(old.keys() | new.keys())
        return [text for key in keys for text in differences(old.get(key), new.get(key), f"{where}/{key}")]
    if old is None or new is None:
        return [f"{where}: only in the {'old' if new is None else 'new'} traces"]
    a, b = np.asarray(old, float), np.asarray(new, float)
    if a.shape != b.shape:
        return [f"{where}: shape {a.shape} became {b.shape}"]
    if np.array_equal(a, b, equal_nan=True):
        return []
    return [f"{where}: differs by up to {np.nanmax(np.abs(a - b)):.3g}"]


def main() -> int:
    """Write or compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"replace {FILE.name}")
    parser.add_argument("--compare", action="store_true", help="compare bit for bit")
    parser.add_argument("--only", default="", help="cases whose name contains this; comparing takes no others either")
    parser.add_argument("--file", type=Path, default=FILE, help="another file of traces")
    asked = parser.parse_args()
    if asked.write == asked.compare:
        parser.error("give --write or --compare")
    made: dict[str, Any] = json.loads(asked.file.read_text()) if asked.write and asked.only and asked.file.exists() else {}
    for name, run in cases():
        if asked.only in name:
            made[name] = run()
            print(f"ran {name}", file=sys.stderr, flush=True)
            if asked.write:
                records.write_bytes(asked.file, _pretty(made))
    if asked.write:
        print(f"written: {asked.file} ({len(made)} cases)")
        return 0
    old = {name: values for name, values in json.loads(asked.file.read_text()).items() if asked.only in name}
    found = differences(old, json.loads(_pretty(made)))
    print("\n".join(found) or f"{len(made)} cases: equal, bit for bit")
    return int(bool(found))


def _pretty(made: dict[str, Any]) -> bytes:
    """One line a case; floats as Python writes them, which reads back to the same bits."""
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(value)}" for name, value in made.items())
    return f"{{\n{lines}\n}}\n".encode()


if __name__ == "__main__":
    sys.exit(main())
