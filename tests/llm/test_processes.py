"""Several processes are one run: two gloo processes give the single process's weights on the same global batch."""

from __future__ import annotations

import json

import pytest
import torch
from llm_models import gpt2, untimed
from llm_spawn import run_together
from safetensors.torch import load_file

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.levels.processes import Processes
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.roles import sharding
from bilevel_rl.llm.roles.backend import FullRoles
from bilevel_rl.llm.sampling.gathering import widen
from bilevel_rl.llm.sampling.rollout import from_pairs

VARIANTS = {
    "shared": {"credit": "gae", "replay_pairs": 3, "gold_prompts": True},
    "paired lora parts": {"estimator": "paired", "backend": "lora", "micro_batch": 3, "objective": "gold"},
    "tilted": {"estimator": "tilted", "replay_pairs": 3},
    "fixed reward": {"method": "fixed_reward", "reward_steps": 2, "label_budget": 6, "steps": 4},
    "stored": {
        "objective": {"stored_preference": 1.0, "preference": 0.5}, "x_penalty": 0.1,
        "preferences": [{"prompt": [3], "chosen": [7 + i, 1], "rejected": [9 + i, 11, 1]} for i in range(5)],
    },
    "finite difference": {"method": "finite_difference", "steps": 4},
    "recipe of uneven rows": {
        "recipe": "select=d3s, credit=gae, loss=clipped, regular=0.1*safe", "estimator": "tilted", "epochs": 2,
    },
    "sharded shared": {"fsdp": True, "backend": "lora", "credit": "gae", "replay_pairs": 3},
    "sharded paired parts": {"fsdp": True, "estimator": "paired", "backend": "lora", "micro_batch": 3, "objective": "gold"},
    "sharded tilted": {"fsdp": True, "backend": "lora", "estimator": "tilted", "replay_pairs": 3},
}  # fmt: skip


# one whose weights are whole and one of adapters in parts; the others are slow
QUICK = ("shared", "paired lora parts")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_two_processes_are_one(name, tmp_path):
    # plain steps in 64 bits: another order of sums must not be magnified by Adam's division
    options = {"dtype": "float64", "optimizer": "sgd", "alpha": 0.1, "zeta": 0.1, "beta": 0.1} | VARIANTS[
        name
    ]
    options.pop("gold_prompts", None)
    runs = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        folder.mkdir()
        run_together(count, options, folder)
        for rank in range(count):
            history = json.loads((folder / f"rank{rank}.json").read_text())
            runs.append((load_file(folder / f"rank{rank}.safetensors"), untimed(history)))
    single, first, second = runs
    for key, value in single[0].items():
        assert torch.equal(first[0][key], second[0][key]), key
        torch.testing.assert_close(first[0][key], value, atol=1e-10, rtol=1e-8)
    assert first[1] == second[1]
    for one, two in zip(single[1], first[1], strict=True):
        assert two == pytest.approx(one, rel=1e-6, abs=1e-9)


def test_rows_that_do_not_divide_are_refused():
    processes = Processes("cpu")
    processes.count, processes.rank = 3, 1
    assert processes.share(9) == slice(3, 6)
    assert [Processes.part(_rank(i, 3), 7) for i in range(3)] == [slice(0, 2), slice(2, 4), slice(4, 7)]
    with pytest.raises(
        InvalidConfig, match=r"config.prompts_per_step: got 4; it must be divisible by the 3 processes"
    ):
        processes.share(4)


def test_a_process_that_does_not_know_its_peers_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidConfig, match="processes: got 1 processes where WORLD_SIZE is 2"):
        Processes("cpu")


def test_sharding_asks_for_version_2_and_a_shared_base(monkeypatch):
    assert not sharding.asked()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(InvalidConfig, match=r"got FSDP version 1.*Add --fsdp_version 2"):
        sharding.asked()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert sharding.asked()
    with pytest.raises(InvalidConfig, match=r"config.backend: got 'full' with FSDP"):
        sharding.shard(FullRoles(gpt2()))
    assert not Processes("cpu", sharding.asked()).sharded  # one process has nobody to share with


def _rank(rank, count):
    processes = Processes("cpu")
    processes.rank, processes.count = rank, count
    return processes


def test_widening_adds_padding_and_changes_nothing_else():
    rollout = from_pairs([(Prompt((3, 4), "a"), (5, 6, 1)), (Prompt((3,), "b"), (7,))], pad_id=9)
    wide = widen(rollout, 4, 5, 9)
    assert wide.ids.tolist() == [[9, 9, 3, 4, 5, 6, 1, 9, 9], [9, 9, 9, 3, 7, 9, 9, 9, 9]]
    assert wide.attention.tolist() == [[0, 0, 1, 1, 1, 1, 1, 0, 0], [0, 0, 0, 1, 1, 0, 0, 0, 0]]
    assert wide.completion_ids() == rollout.completion_ids()
    assert wide.positions.tolist() == [[0, 0, 0, 1, 2, 3, 4, 4, 4], [0, 0, 0, 0, 1, 1, 1, 1, 1]]
