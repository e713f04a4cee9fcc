"""Speed of the finite engine against a hand-written yardstick, and how cost grows with states and runs.

    python benchmarks/speed.py            # writes results/speed.json
    python benchmarks/speed.py --quick    # smaller, written nowhere

Wall-clock minima of several repetitions in one process; the yardstick runs between them. Run it on a quiet machine:
the result names the load it saw.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.loop import use_64_bit

sys.path.insert(0, str(Path(__file__).parent))

from yardsticks import plain_numba

from bilevel_rl import records
from bilevel_rl.finite import oracles
from bilevel_rl.finite.problems import GoalPlacement
from bilevel_rl.finite.solvers import CoupledPenalty, PenaltyActorCritic
from bilevel_rl.loop import stepping

use_64_bit()

ONE_SIZE = """
import json, resource, sys
sys.path.insert(0, {folder!r})
import jax
import speed  # which asks for 64 bits
from bilevel_rl.finite.problems import RandomMDP
from bilevel_rl.finite.solvers import PenaltyActorCritic

problem = RandomMDP(states={states}, actions=4, branching=4)
_, seconds = speed.time_engine(problem, PenaltyActorCritic(chains=64), 1, 2000, 3)
tables = sum(v.nbytes for v in jax.tree.leaves(problem) if hasattr(v, "nbytes"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps(dict(nanoseconds=seconds / 2000 / 128 * 1e9, peak_mib=peak / 1024, tables_mib=tables / 2**20)))
"""
RESULTS = Path(__file__).parent / "results" / "speed.json"


def time_engine(problem, solver, runs: int, iterations: int, repeats: int = 5) -> tuple[float, float]:
    """Seconds of the first call (compilation included), and of the fastest later one."""
    problem = jax.tree.map(jnp.asarray, problem)
    stacked = stepping.stack([solver], runs)
    keys = jax.random.split(jax.random.key(0), runs)
    x = jnp.broadcast_to(problem.x0, (runs, *problem.x0.shape))
    began = time.perf_counter()
    states = stepping.first_states(problem, stacked, x, keys)
    states, _ = jax.block_until_ready(stepping.advance(problem, stacked, states, keys, jnp.array(0), iterations))
    first, best = time.perf_counter() - began, np.inf
    for i in range(repeats):
        began = time.perf_counter()
        states, _ = stepping.advance(problem, stacked, states, keys, jnp.array(iterations * (i + 1)), iterations)
        jax.block_until_ready(states)
        best = min(best, time.perf_counter() - began)
    return first, best


def time_yardstick(problem, chains: int, iterations: int, repeats: int = 5) -> float:
    """Seconds of the fastest run of the hand-written loop."""
    mdp = problem.mdp
    tables = [np.asarray(v) for v in (mdp.successors, mdp.probabilities, problem.position)]
    utility = np.asarray(problem.objective.bonus(problem.x0))[:, 0].copy()
    initial, power = np.array([0.1, 1.0, 0.5, 1.0, 0.05]), np.array([9 / 10, 1 / 2, 1 / 2, 3 / 20, 1 / 20])
    best = np.inf
    for i in range(repeats + 1):
        began = time.perf_counter()
        plain_numba.run(
            *tables, utility, problem.width, float(mdp.discount), 0.05, np.array(problem.x0), iterations, chains,
            initial, power, i,
        )  # fmt: skip
        best = min(best, time.perf_counter() - began) if i else np.inf  # the first call compiles
    return best


def one_size(states: int) -> dict:
    """Time per transition and peak memory at one size, measured in a process of its own."""
    code = ONE_SIZE.format(folder=str(Path(__file__).parent), states=states)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    return {"states": states, **json.loads(out.splitlines()[-1])}


def main() -> None:
    """Measure everything and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="shorter, smaller, written nowhere")
    quick = parser.parse_args().quick
    scale = 1 if quick else 5
    problem = GoalPlacement(rows=10, columns=10)
    results: dict = {"load_before": os.getloadavg()[0], "hardware": records.hardware(), "rows": []}

    def row(name: str, value: float, unit: str, target: str) -> None:
        results["rows"].append({"name": name, "value": value, "unit": unit, "target": target})
        print(f"{name:60s} {value:10.3f} {unit:20s} target {target}", flush=True)

    first, t = time_engine(problem, PenaltyActorCritic(), 1, 4000 * scale)
    row("first call, one run, one chain", first, "s", "under 5")
    row("one run, one chain", t / 4000 / scale * 1e6, "us an iteration", "at most 6")
    yard = time_yardstick(problem, 1, 20_000 * scale)
    row("yardstick (Numba), one chain", yard / 20_000 / scale * 1e6, "us an iteration", "")
    _, t64 = time_engine(problem, PenaltyActorCritic(chains=64), 1, 1000 * scale)
    row("one run, 64 chains", t64 / 1000 / scale / 128 * 1e9, "ns a transition", "at most 150")
    yard64 = time_yardstick(problem, 64, 1000 * scale)
    row("yardstick (Numba), 64 chains", yard64 / 1000 / scale / 128 * 1e9, "ns a transition", "")
    row("64 chains over the yardstick", t64 / yard64, "ratio", "at most 2")
    for runs in (1, 8, 32, 128, 512):
        _, t = time_engine(problem, PenaltyActorCritic(), runs, 400 * scale)
        row(f"{runs} runs, one chain each", t / 400 / scale / runs * 1e6, "us a run-iteration", "at most 0.6 at 128")
    first, t = time_engine(problem, CoupledPenalty(), 1, 1000 * scale)
    row("recommended solver, 16 chains, 256 replayed", t / 1000 / scale / 32 * 1e9, "ns a transition", "")
    _, t = time_engine(problem, CoupledPenalty(), 30, 100 * scale)
    row("recommended solver, 30 runs", t / 100 / scale / 32 / 30 * 1e9, "ns a transition", "")
    gradient = jax.jit(lambda x: oracles.hyper_gradient(problem, x, 0.05))
    gradient(problem.x0).block_until_ready()
    began = time.perf_counter()
    for _ in range(50):
        gradient(problem.x0).block_until_ready()
    row("exact hyper-gradient, 100 states", (time.perf_counter() - began) / 50 * 1e3, "ms", "")
    sizes = (100, 10_000) if quick else (100, 1_000, 10_000, 100_000, 1_000_000)
    results["sizes"] = [one_size(n) for n in sizes]
    for size in results["sizes"]:
        print(size, flush=True)
    results["load_after"] = os.getloadavg()[0]
    results["provenance"] = records.provenance("python benchmarks/speed.py")
    results["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    if not quick:
        records.write_json(RESULTS, results)


if __name__ == "__main__":
    main()
