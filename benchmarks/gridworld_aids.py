"""What each aid adds to the paper's algorithm, and what each is worth to our row: one thing changed, the rest the same.

    python benchmarks/gridworld_aids.py [--until 1.2e6]

Two settings of the search (`gridworld_search.py`) on both parametrisations of the goal: that of *as published*, to which one
aid at a time is added, and that of *+ steady followers and w*, from which one is taken away. Nothing is searched again, so a
row says what the change alone does at constants that were chosen without it: less than a row with a search of its own, which
could fit the constants to it. Where an exponent changes, the sequence keeps its value at 300,000 transitions, half way on a
logarithmic axis. 30 fresh seeds, the seeds and random numbers of the search's own rows; differences to the unchanged row are
paired by seed, with Student's 95 % intervals and p after Holm over all changes of a setting and a parametrisation. Writes
`results/gridworld_aids.json`, a setting at a time: a second call goes on. Five minutes of processor time, 1 core.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gridworld_search as search
import jax
import jax.numpy as jnp
import numpy as np
from gridworld import tolerance

from bilevel_rl import records, statistics
from bilevel_rl.experiments.gridworld import problems
from bilevel_rl.finite.solver import Solver
from bilevel_rl.finite.tuning import samples_per_iteration, with_options
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "gridworld_aids.json"
PARTS = ("position", "distribution")
MIDDLE = 300_000  # transitions at which a sequence with another exponent has the value that it had
HOLD = 20_000  # transitions
Change = Callable[[Solver, int], Solver]


def options(**values: float) -> Change:
    """A change of plain options."""
    return lambda solver, _: with_options(solver, values)


def noise(common: bool) -> Change:
    """Common or independent random numbers."""
    return lambda solver, _: dataclasses.replace(solver, common_noise=common)


def held(transitions: int) -> Change:
    """x stays for so many transitions."""
    return lambda solver, each: with_options(solver, {"hold": float(round(transitions / each))})


def falling(**powers: float) -> Change:
    """Other exponents, through the same values at `MIDDLE` transitions."""

    def change(solver: Any, each: int) -> Solver:
        new = {}
        for name, power in powers.items():
            old = getattr(solver.scales, name)
            new[f"scales.{name}.power"] = power
            new[f"scales.{name}.initial"] = old.initial * (MIDDLE / each + 1) ** (power - old.power)
        return with_options(solver, new)

    return change


CHANGES: dict[str, dict[str, Change]] = {
    "as published": {
        "+ common random numbers": noise(True), "+ hold": held(HOLD), "+ momentum .9": options(momentum=0.9),
        "+ averaging": options(average=4.0), "+ constant critics": falling(beta=0.0),
        "+ constant actors": falling(alpha=0.0), "+ constant critics and actors": falling(alpha=0.0, beta=0.0),
        "temperature constant": falling(tau=0.0),
    },
    "+ steady followers and w": {
        "independent numbers": noise(False), "no hold": options(hold=0.0), "no momentum": options(momentum=0.0),
        "averaging": options(average=4.0), "critics that fade": falling(beta=0.5), "actors that fade": falling(alpha=0.5),
        "w that fades": falling(w=0.15), "temperature constant": falling(tau=0.0),
    },
}  # fmt: skip


def main() -> None:
    """Every change of both settings, on both parametrisations."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--until", type=float, default=1.2e6, help="transitions of the runs")
    asked = parser.parse_args()
    optima = records.read_json(RESULTS.parent / "gridworld_optima.json")["optima"]
    budgets = [int(b) for b in search.BUDGETS if b <= asked.until]
    cells: dict[str, Any] = records.read_json(RESULTS)["cells"] if RESULTS.exists() else {}
    for part in PARTS:
        problem = jax.tree.map(jnp.asarray, problems()[part])
        for label in CHANGES:
            key = f"{part} | {label}"
            if key in cells:
                continue
            cells[key] = compared(problem, label, search.stored()[key]["final"]["setting"], budgets, optima[part])
            for name, row in cells[key].items():
                print(f"{key} {name:32s} {row['within']} {row['mean'][-1]} {row.get('difference')}", flush=True)
            records.write_json(RESULTS, {
                "budgets": budgets, "runs": search.RUNS, "middle": MIDDLE, "cells": cells, "hardware": records.hardware(),
                "provenance": records.provenance("python benchmarks/gridworld_aids.py"),
            })  # fmt: skip


def compared(
    problem: Any, label: str, setting: dict[str, Any], budgets: list[int], optimum: dict[str, Any]
) -> dict[str, Any]:
    """The unchanged row and every change of it: seeds that succeed, means, paired differences at the last budget."""
    base = search.made(search.METHODS[label], problem, setting)
    each = samples_per_iteration(problem, base)
    solvers = {"unchanged": base} | {name: change(base, each) for name, change in CHANGES[label].items()}
    x = simulated(problem, solvers, budgets)
    hard = {name: search.grade(problem, x[name]) for name in solvers}
    rows = {}
    for name, values in hard.items():
        soft = search.grade(problem, x[name][:, -1], search.TAU)
        rows[name] = {
            "within": (values <= optimum["value"] + tolerance(optimum)).sum(0).tolist(),
            "mean": values.mean(0).round(4).tolist(), "regularised mean": round(float(soft.mean()), 4),
        }  # fmt: skip
    changed = list(CHANGES[label])
    p = statistics.holm([statistics.paired_test(hard[name][:, -1], hard["unchanged"][:, -1]) for name in changed])
    for name, value in zip(changed, p, strict=True):
        gap = statistics.mean_interval(hard[name][:, -1] - hard["unchanged"][:, -1])
        rows[name] |= {"difference": [round(float(v), 4) for v in gap], "p (Holm)": float(f"{value:.3g}")}
    return rows


def simulated(problem: Any, solvers: dict[str, Solver], budgets: list[int]) -> dict[str, np.ndarray]:
    """x [runs, budgets, d] of every solver; those that are one program run side by side."""
    groups: dict[Any, list[str]] = {}
    for name, solver in solvers.items():
        groups.setdefault(jax.tree.structure(solver), []).append(name)
    found = {}
    for names in groups.values():
        x = search.run(problem, [solvers[name] for name in names], search.SEED, search.RUNS, budgets)
        found |= dict(zip(names, x, strict=True))
    return found


if __name__ == "__main__":
    main()
