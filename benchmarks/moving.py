"""What a transition costs where x moves the kernel, from 100 to a million states: local successors and random ones.

    python benchmarks/moving.py

`coupled_penalty` as shipped on one problem in three shapes: a queue (next states s - 1, s, s + 1, s + 2), a square grid
(four neighbours) and random successors, four a pair. x tilts every row. Kernels are drawn row by row (`transitions_at`);
`whole table` leaves that out, so that `transitions(x)` is made at every step. Each point is a process of its own. Processor
time of the compiled loop, one run, the least of six intervals, per transition. Results go to `results/moving.json`; a second
call runs what is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import numpy as np

from bilevel_rl import records
from bilevel_rl.finite import FiniteMDP, solve
from bilevel_rl.finite.problems import RandomMDP
from bilevel_rl.finite.solvers import CoupledPenalty
from bilevel_rl.finite.tables import TableProblem
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "moving.json"
SIZES = (100, 1_024, 10_000, 102_400, 1_000_000)
LARGEST_WHOLE = 102_400  # a whole table of a million states takes minutes
INTERVAL = 500


class WholeTable(RandomMDP):
    """The same without its rows: every step makes the table."""

    transitions_at = TableProblem.transitions_at


def shaped(kind: str, states: int) -> RandomMDP:
    """The problem of a shape and size; all but the successors of random ones is the same."""
    make = WholeTable if kind == "whole table, queue" else RandomMDP
    problem = make(states, actions=2, branching=4, features=2, moving=True)
    if kind == "random":
        return problem
    side = round(states**0.5)
    offsets = (-1, 1, -side, side) if kind == "grid" else (-1, 0, 1, 2)
    successors = np.clip(np.arange(states)[:, None, None] + np.array(offsets), 0, states - 1)
    mdp = FiniteMDP.from_sparse(
        np.broadcast_to(successors, (states, 2, 4)), np.asarray(problem.mdp.probabilities), None, 0.9
    )
    return eqx.tree_at(lambda p: p.mdp, problem, mdp)


def point(kind: str, states: int) -> dict:
    """Nanoseconds of a processor a transition, and the peak of memory in MiB."""
    from bilevel_rl.bench.cell import peak_memory

    spent = []
    trace = solve(
        shaped(kind, states), CoupledPenalty(), iterations=7 * INTERVAL, record_every=INTERVAL, evaluate=False,
        on_record=lambda k, newest: spent.append(time.process_time()),
    )  # fmt: skip
    each = float(trace["samples"][0, -1]) / 7
    return {"nanoseconds": round(min(np.diff(spent)) / each * 1e9, 1), "peak_mib": round(peak_memory(), 1)}


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(point(options.point[0], int(options.point[1]))))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"points": {}}
    for kind in ("queue", "random", "grid", "whole table, queue"):
        for states in SIZES:
            key = f"{kind} | {states}"
            if key in results["points"] or (kind.startswith("whole") and states > LARGEST_WHOLE):
                continue
            command = [sys.executable, __file__, "--point", kind, str(states)]
            said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            results["points"][key] = json.loads(said.splitlines()[-1])
            results["hardware"] = records.hardware()
            results["provenance"] = records.provenance("python benchmarks/moving.py")
            records.write_json(RESULTS, results)
            print(key, results["points"][key], flush=True)


if __name__ == "__main__":
    main()
