"""What a transition costs where x moves the kernel, from 100 to a million states: local successors and random ones.

    python benchmarks/moving.py [--kinds queue grid random "whole table, queue"]

`coupled_penalty` as shipped on one problem in three shapes: a queue (next states s - 1, s, s + 1, s + 2), a square grid
(four neighbours) and random successors, four a pair. x tilts every row. Kernels are drawn row by row (`transitions_at`);
`whole table` leaves that out, so that `transitions(x)` is made at every step. A process a shape compiles a program for every
size; the sizes are then timed in turns, so that a busy machine slows all of them alike. Processor time of the compiled loop,
one run, per transition: the least of eight turns, and the median over turns of its ratio to that at 100 states. Results go
to `results/moving.json`; a second call runs what is missing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import numpy as np
from _stepping import Going

from bilevel_rl import records
from bilevel_rl.finite import FiniteMDP
from bilevel_rl.finite.problems import RandomMDP
from bilevel_rl.finite.tables import TableProblem
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "moving.json"
SIZES = (100, 1_024, 10_000, 102_400, 1_000_000)
LARGEST_WHOLE = 102_400  # a whole table of a million states takes minutes
KINDS = ("queue", "grid", "random", "whole table, queue")
INTERVAL, TURNS = 500, 8


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


def measured(kind: str) -> dict[str, dict[str, float]]:
    """Nanoseconds of a processor a transition by number of states, and how many times as much as at the fewest."""
    sizes = [S for S in SIZES if not kind.startswith("whole") or S <= LARGEST_WHOLE]
    steps = [Going(shaped(kind, states), INTERVAL) for states in sizes]
    spent = np.array([[step() for step in steps] for _ in range(TURNS)])
    least, ratios = spent.min(0), np.median(spent / spent[:, :1], 0)
    return {
        str(states): {"nanoseconds": round(float(t) * 1e9, 1), "ratio": round(float(r), 3)}
        for states, t, r in zip(sizes, least, ratios, strict=True)
    }


def main() -> None:
    """Measure what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=KINDS)
    parser.add_argument("--kind", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.kind:
        print(json.dumps(measured(options.kind)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"kinds": {}}
    for kind in options.kinds:
        if kind in results["kinds"]:
            continue
        said = subprocess.run([sys.executable, __file__, "--kind", kind], capture_output=True, text=True, check=True).stdout
        results["kinds"][kind] = json.loads(said.splitlines()[-1])
        results["hardware"] = records.hardware()
        results["provenance"] = records.provenance("python benchmarks/moving.py")
        records.write_json(RESULTS, results)
        print(kind, results["kinds"][kind], flush=True)


if __name__ == "__main__":
    main()
