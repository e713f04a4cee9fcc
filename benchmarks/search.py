"""Whether a search keeps the right starts: shares of the budget that compare them, and followers that settle first.

    python benchmarks/search.py [--seeds 16] [--methods hpgd ...] [--quick]

Four rooms, with one goal and with two, 8 starts, the samples of one run of the table (400,000), settings as the table tuned
them. Each search is graded by exact oracles: at each cut, was the start of least hyper-objective among those that went on,
and how much worse is the best of those that did; and what was found in the end. A second call skips what is there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from bilevel_rl import metrics as M
from bilevel_rl import records, statistics
from bilevel_rl.bench import methods, tasks
from bilevel_rl.finite import multistart, tuning
from bilevel_rl.loop import use_64_bit

use_64_bit()

RESULTS = Path(__file__).parent / "results" / "search.json"
TABLE = Path(__file__).parent / "results" / "suite.json"
TASKS = ("one-goal four rooms", "four rooms")
METHODS = ("coupled_penalty", "hpgd")
STARTS, ETA = 8, 4
# what starts are compared by, the share of the budget that compares, and the share of that in which followers settle
FORMS = (
    ("follower", 0.1, 0.0), ("model", 0.1, 0.0), ("follower", 0.3, 0.7), ("model", 0.3, 0.0), ("follower", 0.3, 0.0),
    ("follower", 0.6, 0.8),
)  # fmt: skip


def cell(task: tasks.Task, method: methods.Contender, by: str, comparing: float, settling: float, seeds: int) -> dict:
    """Searches that differ in their seed only; lists have an entry each."""
    began = time.perf_counter()
    problem = task.make()
    base = method.make(task, problem)
    chosen = json.loads(TABLE.read_text())["cells"][f"{task.name} | {method.label}"]["tuning"]["chosen"]
    each = tuning.samples_per_iteration(problem, base)
    shape = multistart.Shape(STARTS, task.samples, eta=ETA, comparing=comparing, settling=settling)
    plan = multistart.arrange(base, each, shape)
    # as in the table: a travel is that of the start that goes all the way, and x moves before starts are compared first
    solver = method.settle(base, chosen, task, sum(stage.iterations for stage in plan))
    if methods.HOLD in chosen:
        solver = tuning.with_options(solver, {"hold": float(int(chosen[methods.HOLD] * plan[0].iterations))})
    final, used, best_kept, regret, best_of_all = [], [], [], [], []
    for seed in range(seeds):
        found = multistart.search(
            problem, solver, starts=STARTS, samples=task.samples, eta=ETA, seed=seed, by=by, comparing=comparing,
            settling=settling,
        )  # fmt: skip
        phi, moved = found.metrics[M.OBJECTIVE.key], np.diff(found.metrics[M.ITERATION.key], axis=1) > 0
        final.append(found.value)
        used.append(found.samples)
        best_of_all.append(float(phi.min()))
        for r in range(1, len(found.stages)):
            there, on = phi[moved[:, r - 1], r], phi[moved[:, r], r]
            best_kept.append(bool(on.min() <= there.min() + 1e-3))  # of several in one basin either is right
            regret.append(float(on.min() - there.min()))
    return {
        "by": by, "comparing": comparing, "settling": settling, "setting": chosen, "seeds": seeds, "samples": max(used),
        "stages": [[s.starts, s.iterations, s.settle, s.measure] for s in plan],
        "best_kept": f"{sum(best_kept)} of {len(best_kept)}", "mean_regret": float(np.mean(regret)),
        "final": final, "mean_final": float(np.mean(final)), "iqm_final": list(statistics.bootstrap(np.array(final))),
        "mean_of_best_seen": float(np.mean(best_of_all)), "seconds": round(time.perf_counter() - began, 1),
    }  # fmt: skip


def table(cells: dict[str, dict]) -> dict:
    """Heads and rows, as the page of results shows them."""
    heads = ["Compared by", "Share", "Settling", "Task", "Method", "Kept", "Regret", "Mean final", "IQM final [95 %]"]
    rows = []
    for key, c in cells.items():
        name, label, _ = key.split(" | ")
        middle, low, high = c["iqm_final"]
        rows.append([
            c["by"], f"{c['comparing']:g}", f"{c['settling']:g}", name, label, c["best_kept"], f"{c['mean_regret']:.3f}",
            f"{c['mean_final']:.3f}", f"{middle:.3f} [{low:.3f}, {high:.3f}]",
        ])  # fmt: skip
    return {"heads": heads, "rows": rows}


def main() -> None:
    """Fill every missing cell."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=16)
    parser.add_argument("--tasks", nargs="*", default=TASKS, choices=TASKS)
    parser.add_argument("--methods", nargs="*", default=METHODS, choices=METHODS)
    parser.add_argument("--quick", action="store_true", help="two seeds, written nowhere")
    options = parser.parse_args()
    have = json.loads(RESULTS.read_text()) if RESULTS.exists() and not options.quick else {"cells": {}}
    for by, comparing, settling in FORMS:
        for name in options.tasks:
            for label in options.methods:
                key = f"{name} | {label} | by {by}, comparing {comparing:g}, settling {settling:g}"
                if key in have["cells"]:
                    continue
                task, method = next(t for t in tasks.ALL if t.name == name), methods.named((label,), False)[0]
                got = cell(task, method, by, comparing, settling, 2 if options.quick else options.seeds)
                have["cells"][key] = got
                print(f"{key}: best kept {got['best_kept']}, regret {got['mean_regret']:.3f}, final "
                      f"{got['mean_final']:.3f}, best seen {got['mean_of_best_seen']:.3f}; {got['seconds']} s", flush=True)
                if not options.quick:
                    have["provenance"] = records.provenance("python benchmarks/search.py")
                    records.write_json(RESULTS, have | table(have["cells"]))


if __name__ == "__main__":
    main()
