"""Neural followers where the answer is known: estimates at a fixed x, and whole runs, judged by exact values.

    python benchmarks/control_known.py fixed judged           estimates against the exact hyper-gradient, on a table
    python benchmarks/control_known.py run judged             whole runs on tables seen one-hot and by coordinates
    python benchmarks/control_known.py run lqg.9 bounded      whole runs on linear systems
    python benchmarks/control_known.py run four_rooms         against what exact descent finds from the same start, too
    python benchmarks/control_known.py paper bounded lqg.9    the paper's algorithm with neural followers

Every part is written to `results/control_known.json` when it ends; what is there already is not run again without
`--again`. Ten seeds that no setting was chosen on; both followers' transitions are counted. A run is within 5 % where its
gap is at most .05 of the larger of |best value| and the gap at x0. Minutes of one core each.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl import records
from bilevel_rl.control import problems, solvers
from bilevel_rl.control.estimators import Pair
from bilevel_rl.control.leader import Leader
from bilevel_rl.finite.problems import FourRooms, FrozenLake
from bilevel_rl.finite.solvers import ExactQuasiNewton
from bilevel_rl.judged import Judged, NeuralGoalPlacement
from bilevel_rl.loop import Problem, Solver, solve
from bilevel_rl.loop.problem import Optimum

FILE = Path(__file__).parent / "results" / "control_known.json"
BEST_KNOWN = {"four_rooms": "four rooms"}  # labels of `best_known.json`, where brute force is out of reach
SEED, RUNS, RECORDS = 2026, 10, 20
HELD = Leader(hold=1e18, momentum=0.995, evidence=0.0)  # estimates are averaged over 200 moves, x stays

PROBLEMS: dict[str, tuple[Callable[[], Problem], int]] = {
    "judged": (NeuralGoalPlacement, 100_000),
    "coordinates": (lambda: NeuralGoalPlacement(observed="coordinates"), 100_000),
    "frozen_lake": (lambda: Judged(FrozenLake()), 100_000),
    "four_rooms": (lambda: Judged(FourRooms()), 100_000),
    "bounded": (problems.BoundedShaping, 64_000),
    "lqg.9": (problems.LQGShaping, 64_000),
    "lqg.98": (lambda: problems.LQGShaping(gamma=0.98), 128_000),
    "lqg.9x4": (lambda: problems.LQGShaping(size=4, actions=4), 64_000),
}

ESTIMATORS: dict[str, Callable[..., Solver]] = {
    "covariance": solvers.Covariance, "trajectory": solvers.Trajectory, "backward": solvers.Backward,
    "coupled pair, w .03": solvers.CoupledPair, "hpgd": solvers.HPGD,
    "pair, w .1": lambda **o: solvers.CoupledPair(estimator=Pair(common=False), w=0.1, **o),
}  # fmt: skip


def main() -> None:
    """Run the parts named, each unless it is there."""
    again, (kind, *names) = "--again" in sys.argv, [word for word in sys.argv[1:] if not word.startswith("--")]
    for name in names:
        key = f"{kind} {name}"
        if key in read()["parts"] and not again:
            continue
        began = time.process_time()
        part = {"fixed": fixed, "run": run, "paper": paper}[kind](name)
        part["cpu seconds"] = round(time.process_time() - began)
        known = read()  # parts may be run side by side
        known["parts"][key] = part
        known |= {
            "hardware": records.hardware(),
            "provenance": records.provenance("python benchmarks/control_known.py fixed | run | paper PROBLEM ..."),
        }
        records.write_json(FILE, known)
        print(key, json.dumps(part, indent=1), flush=True)


def read() -> dict[str, Any]:
    """What has been measured so far."""
    return json.loads(FILE.read_text()) if FILE.exists() else {"parts": {}}


def fixed(name: str) -> dict[str, Any]:
    """Means of estimates at x0, over the last moves, against the exact hyper-gradient."""
    problem, transitions = PROBLEMS[name][0](), 64_000
    x0 = jnp.asarray(problem.x0, float)
    exact = np.asarray(jax.grad(lambda x: problem.truth(x, problem.temperature()) - problem.cost(x))(x0))
    rows = {}
    for label, kind in ESTIMATORS.items():
        solver = kind(leader=HELD)
        iterations = transitions // solver.rows_each()
        trace = solve(problem, solver, iterations=iterations, runs=4, seed=SEED, record_every=iterations, evaluate=False)
        cost = np.asarray(jax.grad(lambda x: jnp.asarray(problem.cost(x), float))(x0))
        # the running mean began at 0; cost is no part of the estimate
        moves = iterations // HELD.every
        g = np.asarray(trace.state.motion.slope) / (1 - HELD.momentum**moves) - cost
        size = np.linalg.norm(exact)
        mean = g.mean(0)
        rows[label] = {
            "bias": float(np.linalg.norm(mean - exact) / size),
            "spread": float(np.sqrt(((g - mean) ** 2).sum(1).mean()) / size),
            "cosine": float(mean @ exact / np.linalg.norm(mean) / size),
        }
    return {"transitions": transitions, "seeds": 4, "dimensions": len(x0), "exact": exact.tolist(), "rows": rows}


def run(name: str) -> dict[str, Any]:
    """The recommended solver with its defaults."""
    make, transitions = PROBLEMS[name]
    problem = make()
    part = graded(problem, solvers.Covariance(), transitions)
    if name in BEST_KNOWN:  # a local method ends in the basin of its start
        exact = solve(problem.table, ExactQuasiNewton(), iterations=60, record_every=60)
        reached = float(exact["objective"][0, -1])
        allowed = 0.05 * max(abs(reached), part["gap at x0"] + part["best value"] - reached)
        gaps = np.array(part["gaps at the end"]) + part["best value"] - reached
        part |= {"exact descent from x0": reached, "within of exact descent": int((gaps <= allowed).sum())}
    return part


def paper(name: str) -> dict[str, Any]:
    """The paper's algorithm, independent and common numbers."""
    make = PROBLEMS[name][0]
    return {
        words: graded(make(), solvers.PenaltyActorCritic(common_noise=common), 300_000)
        for words, common in (("independent", False), ("common", True))
    }


def listed(problem: Problem) -> Optimum:
    """The best value on record; its x is not kept."""
    label = next(label for name, label in BEST_KNOWN.items() if problem.table.name == name)
    value = json.loads((FILE.parents[1] / "best_known.json").read_text())[label]["value"]
    return Optimum(np.full(problem.x0.shape, np.nan), value, value)


def graded(problem: Problem, solver: Solver, transitions: int) -> dict[str, Any]:
    """Seeds within 5 % at records of a run."""
    each = solver.chains * (2 if isinstance(solver, solvers.PenaltyActorCritic) else 1)
    every = transitions // each // RECORDS
    best = problem.best_known(problem.temperature()) or listed(problem)
    trace = solve(problem, solver, iterations=every * RECORDS, runs=RUNS, seed=SEED, record_every=every, optimum=best)
    gap = trace["gap"]
    near = gap <= 0.05 * max(abs(best.value), gap[0, 0])
    return {
        "transitions": np.asarray(trace["samples"][0]).tolist(), "runs": RUNS, "best value": best.value,
        "best x": best.x.tolist() if np.isfinite(best.x).all() else None, "gap at x0": float(gap[0, 0]),
        "within": near.sum(0).tolist(),
        "within at the end": int(near[:, -1].sum()), "median gap": np.median(gap, 0).round(5).tolist(),
        "gaps at the end": np.sort(gap[:, -1]).round(5).tolist(), "stopped": list(trace.messages),
        "restarts": int(trace["restarts"][:, -1].sum()) if "restarts" in trace.metrics else 0,
    }  # fmt: skip


if __name__ == "__main__":
    main()
