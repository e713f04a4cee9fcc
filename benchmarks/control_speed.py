"""What a neural follower costs: alone and in a batch of seeds, with and without an estimator, beside SB3's SAC.

    python benchmarks/control_speed.py
    python benchmarks/control_speed.py memory      8 seeds whose replays hold a million rows, in a process of their own

SAC with networks of 64x64 and batches of 128 on Pendulum, 16 transitions an update in ours, one in Stable-Baselines3's.
Processor time of this process after compilation, one thread each (`XLA_FLAGS` and `OMP_NUM_THREADS` as in the record):
ratios hold on a busy machine, seconds do not. Writes `results/control_speed.json`. Two minutes of one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import dataclasses
import json
import resource
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bilevel_rl import records
from bilevel_rl.control.leader import Leader
from bilevel_rl.control.problems import PendulumShaping
from bilevel_rl.control.solvers import CoupledPair, Covariance, PartialSGD
from bilevel_rl.loop import solve, stepping, use_64_bit

use_64_bit()

FILE = Path(__file__).parent / "results" / "control_speed.json"
UPDATES = 400


def main() -> None:
    """Measure, print, write."""
    if "memory" in sys.argv:
        return memory()
    every = dataclasses.replace(Leader(), every=1)
    kinds = {
        "follower alone": PartialSGD(), "covariance, a move in 4 iterations": Covariance(),
        "covariance, a move an iteration": Covariance(leader=every), "coupled pair": CoupledPair(),
    }  # fmt: skip
    rows: dict[str, dict[str, float]] = {}
    for label, solver in kinds.items():
        rows[label] = {f"{runs} seeds": ours(solver, runs) for runs in (1, 8)}
        print(label, rows[label], flush=True)
    rows["SB3 SAC"] = {"1 seeds": theirs()}
    one, eight = (rows["follower alone"][f"{runs} seeds"] for runs in (1, 8))
    facts = {
        "microseconds a seed-update": rows,
        "a seed-update among 8 over one alone": round(eight / one, 3),
        "SB3 over ours, one seed": round(rows["SB3 SAC"]["1 seeds"] / one, 2),
        "SB3 over ours, 8 seeds": round(rows["SB3 SAC"]["1 seeds"] / eight, 2),
        "estimator over follower, 8 seeds": round(rows["covariance, a move in 4 iterations"]["8 seeds"] / eight, 2),
        "updates": UPDATES, "flags": os.environ["XLA_FLAGS"], "hardware": records.hardware(),
        "provenance": records.provenance("python benchmarks/control_speed.py"),
    }  # fmt: skip
    print(facts)
    records.write_json(FILE, read() | facts)


def read() -> dict[str, Any]:
    """What has been measured so far."""
    return json.loads(FILE.read_text()) if FILE.exists() else {}


def memory() -> None:
    """Peak of this process, with two records of a run whose replays are as large as they can get."""
    solve(PendulumShaping(), Covariance(capacity=1_000_000), iterations=8, record_every=4, runs=8)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # GiB; Linux counts KiB
    print(f"{peak:.2f} GiB")
    records.write_json(FILE, read() | {"peak GiB, 8 seeds of 1,000,000 rows": round(peak, 2)})


def ours(solver: Any, runs: int) -> float:
    """Microseconds of processor time for one update of one seed."""
    problem = jax.tree.map(jnp.asarray, PendulumShaping())
    stacked, keys = stepping.stack([solver.on(problem)], runs), stepping.run_keys(0, runs)
    states = stepping.first_states(problem, stacked, jnp.tile(problem.x0, (runs, 1)), keys)
    go = partial(stepping.advance, problem, stacked, keys=keys, length=UPDATES)
    states, _ = jax.block_until_ready(go(states=states, k0=jnp.array(0)))
    began = time.process_time()
    jax.block_until_ready(go(states=states, k0=jnp.array(UPDATES)))
    return round(1e6 * (time.process_time() - began) / UPDATES / runs, 1)


def theirs() -> float:
    """The same for Stable-Baselines3, one step of the environment and one update at a time."""
    import torch
    from stable_baselines3 import SAC

    torch.set_num_threads(1)
    nets = {"net_arch": [64, 64]}
    agent = SAC("MlpPolicy", "Pendulum-v1", policy_kwargs=nets, batch_size=128, learning_starts=200, seed=0)
    agent.learn(300)
    began = time.process_time()
    agent.learn(UPDATES, reset_num_timesteps=False)
    return round(1e6 * (time.process_time() - began) / UPDATES, 1)


if __name__ == "__main__":
    main()
