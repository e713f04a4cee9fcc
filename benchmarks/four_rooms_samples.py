"""Four rooms by samples alone: what 400,000 transitions bring, beside what is published for far more.

    python benchmarks/four_rooms_samples.py [--runs 5] [--only "four_rooms .001 1" ...] [--out runs/four_rooms_samples]

`certainty_equivalence` with twenty starts on one learnt model, in the nine cells of A and the three of B; a run is one seed
with its own samples and its own first start x ~ N(0, I). Graded by the exact oracle at the x that the learnt model calls
best. HPGD's published runs have 10,000 iterations of 10,000 transitions and a follower that plans with the true model. A
cell is a file below `--out`: a second call fills what is missing.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import jax
import numpy as np

from bilevel_rl import records, statistics
from bilevel_rl.bench import collect
from bilevel_rl.commands import screen
from bilevel_rl.finite import solve
from bilevel_rl.finite.problems import FourRooms, OneGoalFourRooms
from bilevel_rl.finite.solvers import CertaintyEquivalence
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "four_rooms_samples.json"
SAMPLES, SEED = 393_216, 20
# few large batches: on a model of few samples a start leaves its basin; 20: the own start, 18 structured ones, a random one
OPTIONS = {"step_size": 10.0, "explore": 0.5, "chains": 16, "length": 4096, "descents": 80, "starts": 20}
# best of the studies' methods, as in benchmarks/exact_search.py
PUBLISHED = {
    ("four_rooms", 0.001, 1): 0.91, ("four_rooms", 0.001, 3): 0.51, ("four_rooms", 0.001, 5): 0.46,
    ("four_rooms", 0.003, 1): 1.00, ("four_rooms", 0.003, 3): 0.73, ("four_rooms", 0.003, 5): 0.32,
    ("four_rooms", 0.005, 1): 1.28, ("four_rooms", 0.005, 3): 1.13, ("four_rooms", 0.005, 5): 0.97,
    ("one_goal_four_rooms", 0.001, 5): 0.69, ("one_goal_four_rooms", 0.003, 5): 0.54,
    ("one_goal_four_rooms", 0.005, 5): 1.33,
}  # fmt: skip


def cell(name: str, temperature: float, price: int, runs: int) -> dict:
    """Upper values (higher is better) of some seeds."""
    make = FourRooms if name == "four_rooms" else OneGoalFourRooms
    problem = make(temperature=temperature, price=float(price))
    solver = CertaintyEquivalence(tau=temperature, **OPTIONS)
    x0 = jax.random.normal(jax.random.key(SEED), (runs, problem.x0.shape[0]))
    iterations = SAMPLES // (solver.chains * solver.length)
    began = time.perf_counter()
    trace = solve(problem, solver, iterations=iterations, record_every=iterations, runs=runs, seed=SEED, x0=x0)
    values = -np.where(trace.status == 0, trace["objective"][:, -1], np.inf)
    return {"values": values.tolist(), "samples": int(trace["samples"][0, -1]), "seconds": time.perf_counter() - began}


def main() -> None:
    """Fill the cells, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--out", type=Path, default=Path("runs/four_rooms_samples"))
    asked = parser.parse_args()
    cells, rows = {}, []
    for (name, temperature, price), published in PUBLISHED.items():
        label = f"{name} {temperature:g} {price}"
        file = asked.out / f"{label.replace(' ', '-')}.json"
        if asked.only and label not in asked.only:
            continue
        if not file.exists():
            records.make_folder(asked.out)
            records.write_json(file, cell(name, temperature, price, asked.runs))
        facts = records.read_json(file)
        values = np.array(facts["values"])
        point, low, high = statistics.bootstrap(values)
        cells[label] = facts
        rows.append([
            f"`{name}`", f"{temperature:g}", str(price), f"{published:g}", f"{point:.4g} [{low:.4g}, {high:.4g}]",
            f"{values.min():.4g}", f"{values.max():.4g}", str(len(values)), f"{facts['samples']:,}",
            f"{facts['seconds']:.0f}",
        ])  # fmt: skip
        print(rows[-1], flush=True)
    heads = ["Problem", "Temperature", "Price", "Published best", "Interquartile mean [95 %]", "Worst", "Best", "Runs",
             "Transitions", "Seconds"]  # fmt: skip
    screen.show_rows("four rooms by samples", tuple(heads), [tuple(row) for row in rows])
    facts = {"options": OPTIONS, "seed": SEED, "heads": heads, "rows": rows, "cells": cells}
    collect.write(RESULTS, facts | {"provenance": records.provenance("python benchmarks/four_rooms_samples.py")})


if __name__ == "__main__":
    main()
