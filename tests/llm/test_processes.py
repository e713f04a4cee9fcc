"""Several processes are one run: two gloo processes give the single process's weights on the same global batch."""

from __future__ import annotations

import json

import pytest
import torch
from llm_instances import BagReward, GRUPolicy
from llm_models import trainer, untimed
from llm_spawn import run_together
from safetensors.torch import load_file

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.levels.loop import Loop
from bilevel_rl.levels.processes import Processes
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.roles import sharding
from bilevel_rl.llm.roles.backend import FullRoles
from bilevel_rl.llm.roles.sharding import Sharded
from bilevel_rl.llm.sampling.gathering import widen
from bilevel_rl.llm.sampling.rollout import from_pairs
from bilevel_rl.policy_gradient.recipes import compose

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
    "sharded tilted": {"fsdp": True, "untied": True, "backend": "lora", "estimator": "tilted", "replay_pairs": 3},
    "pieces plain": {"fsdp": True, "method": "plain", "reward": "llm_models:gold", "optimizer": "adam", "alpha": 1e-3},
    "pieces tilted": {"fsdp": True, "estimator": "tilted", "replay_pairs": 3, "clip_norm": 0.01},
    "pieces shared": {"fsdp": True, "untied": True, "credit": "gae", "replay_pairs": 3, "x_penalty": 0.1, "coupling": 0.1},
    "overlapping judge": {"estimator": "tilted", "overlaps": True},
    "pieces paired parts": {
        "fsdp": True, "overlaps": True, "estimator": "paired", "micro_batch": 3, "objective": "label_likelihood",
        "gradient_checkpointing": True,
    },
    "pieces partial": {
        "fsdp": True, "untied": True, "method": "partial_sgd", "reward": "linear", "x_clip_norm": 0.01, "epochs": 2,
    },
    "pieces nested": {"fsdp": True, "method": "nested", "estimator": "shared"},
    "pieces finite difference": {"fsdp": True, "method": "finite_difference", "steps": 4},
    "pieces fisher": {"fsdp": True, "estimator": "fisher", "curvature": "hessian", "fisher_steps": 3},
    "pieces of what trains": {"fsdp": True, "estimator": "shared", "train": ["h.1."]},
}  # fmt: skip


# one whose weights are whole, one of adapters in parts, one in pieces; the others are slow
QUICK = ("shared", "paired lora parts", "pieces tilted")


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


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_weights_in_pieces_are_saved_and_exported_whole_and_go_on_elsewhere(tmp_path):
    """Three processes, whose pieces are not equally long, then two, then one: as one process throughout."""
    options = {"dtype": "float64", "alpha": 1e-3, "zeta": 1e-3, "prompts_per_step": 6, "pairs_per_step": 4, "group": 2}
    options |= {"fsdp": True, "untied": True, "estimator": "shared", "save_every": 1, "eval_every": 1}
    options["held_out"] = [[4], [8, 3]]
    runs = {"parts": ((3, 2), (2, 4), (1, 5)), "alone": ((1, 5),)}
    for name, parts in runs.items():
        for count, steps in parts:
            (folder := tmp_path / name / str(count)).mkdir(parents=True)
            given = options | {"steps": steps, "out": str(tmp_path / name / "run"), "exports": True}
            run_together(count, given, folder, resume=(count, steps) != parts[0])
    ours, alone = (load_file(tmp_path / name / "1/rank0.safetensors") for name in runs)
    for key, value in alone.items():
        torch.testing.assert_close(ours[key], value, atol=1e-10, rtol=1e-8)
    assert (tmp_path / "parts/run/best/state.json").exists()
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    for kind, role in ((AutoModelForCausalLM, "policy"), (AutoModelForSequenceClassification, "reward")):
        theirs = dict(kind.from_pretrained(tmp_path / "parts/2" / role, dtype="float64").named_parameters())
        ours = load_file(tmp_path / "parts/2/rank1.safetensors")
        own = {key.removeprefix(f"{role}/"): v for key, v in ours.items() if key.startswith(f"{role}/")}
        known = {key.removeprefix("model."): v for key, v in own.items()}
        assert known.keys() <= theirs.keys()
        for key, value in known.items():
            assert torch.equal(theirs[key].detach()[: len(value)], value), key  # a pad id of its own may have been added


def test_what_looks_at_a_whole_gradient_is_refused_of_pieces():
    made = trainer(estimator="shared")
    made.engine.pieces = Sharded()
    made.engine.pieces.of = dict.fromkeys(made.roles.parameters("policy").values())
    with pytest.raises(InvalidConfig, match=r"got step=n_pg_igt with weights in pieces"):
        Loop(made.engine, made.settings, made.objective, made.leader.labels, compose("token_rloo, step=n_pg_igt"))


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


def test_sharding_asks_for_version_2_and_for_blocks(monkeypatch):
    assert not sharding.asked()
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(InvalidConfig, match=r"got FSDP version 1.*Add --fsdp_version 2"):
        sharding.asked()
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert sharding.asked()
    with pytest.raises(InvalidConfig, match=r"got a GRUPolicy without a list of blocks"):
        sharding.shard(FullRoles(GRUPolicy(), reward=BagReward(torch.zeros(8))))
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
