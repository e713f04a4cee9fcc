"""What the loop around Gymnasium's environments costs: steps with updates a second on Pendulum, beside Stable-Baselines3.

    python benchmarks/control_host.py

SAC with networks of 64x64, batches of 128, one update a step of a copy; eight copies. Processor time of this process after
compilation, one thread: ratios hold on a busy machine, seconds do not. One minute of one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from bilevel_rl import records
from bilevel_rl.control.hosted import Hosted, train
from bilevel_rl.control.problems import PendulumShaping
from bilevel_rl.control.solvers import Covariance, PartialSGD
from bilevel_rl.host import GymnasiumHost

RESULTS = Path(__file__).parent / "results" / "control_host.json"
COPIES, ITERATIONS = 8, 300
HEADS = ["Loop", "Steps with updates a second of one core"]


def ours(solver: Any) -> float:
    """The second of two runs of a process: the first compiles."""
    problem = PendulumShaping(environment=Hosted.of("Pendulum-v1"))
    train(problem, solver, iterations=20, record_every=20)
    began = time.process_time()
    train(problem, solver, iterations=ITERATIONS, record_every=ITERATIONS)
    return COPIES * ITERATIONS / (time.process_time() - began)


def host_alone() -> float:
    """Steps of copies a second, nothing learning."""
    host, actions = GymnasiumHost("Pendulum-v1", COPIES), np.zeros((COPIES, 1))
    began = time.process_time()
    for _ in range(1000):
        host.step(actions)
    return COPIES * 1000 / (time.process_time() - began)


def theirs() -> float:
    """Stable-Baselines3's SAC, after its first hundred steps."""
    import stable_baselines3
    import torch

    torch.set_num_threads(1)
    model = stable_baselines3.SAC("MlpPolicy", gymnasium.make("Pendulum-v1"), batch_size=128, learning_starts=100,
                                  policy_kwargs={"net_arch": [64, 64]}, seed=0, device="cpu")  # fmt: skip
    model.learn(150)
    began = time.process_time()
    model.learn(600, reset_num_timesteps=False)
    return 600 / (time.process_time() - began)


def main() -> None:
    """Measure, print, write."""
    found = {
        "Stable-Baselines3, SAC, one copy, two critics": theirs(),
        "`hosted.train`, follower alone": ours(PartialSGD(chains=COPIES, updates=COPIES)),
        "`hosted.train`, with the covariance estimator": ours(Covariance(chains=COPIES, updates=COPIES)),
        "`GymnasiumHost` alone, checked, no updates": host_alone(),
    }
    print(found)
    rows = [[name, f"{value:,.0f}"] for name, value in found.items()]
    note = (
        "Pendulum of Gymnasium, eight copies, networks of 64x64, batches of 128, one update a step of a copy; processor "
        "time of one core, after compilation."
    )
    facts = {"note": note, "heads": HEADS, "rows": rows, "per_second": found, "hardware": records.hardware(),
             "command": "python benchmarks/control_host.py"}  # fmt: skip
    RESULTS.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
