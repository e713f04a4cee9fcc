"""Every random number follows the seed: a command in two fresh processes gives the same numbers, bit by bit.

Python's own hashes differ between the two; so would whatever depends on the order of a set, or on a generator that nobody
seeded. Language models have the same test beside those of many processes.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from bilevel_rl import records

HERE = Path(__file__).parent
PROBLEM = ["goal_placement", "--problem.rows", "3", "--problem.columns", "3"]
SHOP = [f"{HERE / 'control/shop_problem.py'}:Subsidy", "--solver.chains", "4", "--solver.batch", "8", "--solver.capacity",
        "64", "--solver.recent", "8", "--solver.follower.soft-q.width", "8", "--solver.estimator.width", "8",
        "--solver.leader.hold", "4"]  # fmt: skip
FEW = ["--samples", "200", "--runs", "2"]
COMMANDS = {
    "run": ["run", PROBLEM[0], "coupled_penalty", *PROBLEM[1:], *FEW, "--no-optimum"],
    "run, neural follower": ["run", SHOP[0], "--samples", "80", "--runs", "2", "--records", "5", *SHOP[1:]],
    "compare": ["compare", *PROBLEM, "--solvers", "coupled_penalty", "penalty_actor_critic:chains=4", *FEW],
    "sweep": ["sweep", PROBLEM[0], "penalty_actor_critic", *PROBLEM[1:], "--grid", "chains=2,4", *FEW],
    "search": ["search", PROBLEM[0], "penalty_actor_critic", *PROBLEM[1:], "--starts", "4", "--samples", "2000"],
    "bench suite": ["bench", "suite", "--problems", "goal_placement", "--solvers", "penalty_actor_critic", *FEW],
}  # fmt: skip


def digest(folder: Path) -> str:
    """Of every number that a command has written, clocks aside."""
    found = hashlib.blake2b()
    for path in sorted(folder.rglob("*.npz")):
        if path.name != "checkpoint.npz":
            for key, value in sorted(records.read_arrays(path).items()):
                if "seconds" not in key:
                    found.update(f"{path.relative_to(folder)} {key} {value.dtype} {value.shape}".encode())
                    found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_twice_in_fresh_processes_has_the_same_digest(name, tmp_path):
    found = []
    for salt in ("1", "2"):
        out = tmp_path / salt
        words = [sys.executable, "-m", "bilevel_rl", *COMMANDS[name], "--out", str(out)]
        done = subprocess.run(
            words, env=dict(os.environ) | {"PYTHONHASHSEED": salt}, cwd=HERE.parent, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        found.append(digest(out))
    assert found[0] == found[1]
    other = tmp_path / "other"
    subprocess.run([*words[:-1], str(other), "--seed", "5"], cwd=HERE.parent, capture_output=True, check=True)
    assert digest(other) != found[0], "and another seed gives other numbers"
    assert not list(tmp_path.rglob("failed.json"))
