"""`bilevel-rl flows`: training by name, two levels by name, a task of one's own, and what is refused."""

from __future__ import annotations

import json

import pytest
import torch

from bilevel_rl.cli import main

FEW = ["--steps", "2", "--batch", "16", "--group", "4"]
TASK = """
import torch
from bilevel_rl.flows import PlaneVelocity


class Right:
    shape, conditions = (2,), None

    def pretrained(self, seed):
        return PlaneVelocity(2, 0, 4, seed)

    def reward(self, point, group):
        return point[:, 0]


right = Right()
"""


@pytest.fixture
def task(tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    return f"{tmp_path}/task.py:right"


def test_a_task_of_ones_own_is_trained_and_kept(task, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["flows", "train", task, *FEW, "--method", "flow_grpo", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "32 samples in 2 iterations" in said
    assert "as it was given" in said
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    from safetensors.torch import load_file

    assert {v.dtype for v in load_file(out / "velocity.safetensors").values()} == {torch.float32}
    assert main(["flows", "train", task, *FEW, "--reference-decay", "0.5"]) == 0
    assert "the reference, which followed" in capsys.readouterr().out


def test_a_used_folder_is_gone_on_with_where_it_is_the_same_run(task, tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ask = ["flows", "train", task, "--batch", "16", "--group", "4"]
    assert main([*ask, "--steps", "4", "--out", str(whole)]) == 0
    assert main([*ask, "--steps", "2", "--out", str(parts)]) == 0
    assert main([*ask, "--steps", "4", "--out", str(parts)]) == 0
    assert len((parts / "metrics.jsonl").read_text().splitlines()) == 4
    assert (parts / "velocity.safetensors").read_bytes() == (whole / "velocity.safetensors").read_bytes()
    assert main([*ask, "--steps", "4", "--out", str(parts), "--rate", "0.5"]) == 2
    assert "rate" in capsys.readouterr().err
    assert main([*ask, "--steps", "4", "--out", str(parts), "--resume", "never"]) == 2
    assert "a new run would wipe it" in capsys.readouterr().err


def test_a_reward_is_learnt_beside_the_flow(monkeypatch, capsys):
    from bilevel_rl.flows.spots import Spots

    quick = Spots.pretrained
    monkeypatch.setattr(Spots, "pretrained", lambda self, seed: quick(self, seed, steps=2, width=4))
    assert main(["flows", "levels", "spots", *FEW]) == 0
    assert "x, what is paid" in capsys.readouterr().out


@pytest.mark.parametrize(("words", "said"), [
    (["tain", "spots"], "Did you mean 'train'"),
    (["train"], "it takes TASK"),
    (["train", "sports"], "Did you mean 'spots'"),
    (["train", "spots", "--methd", "awm"], "methd"),
    (["levels", "TASK"], "Right without prices"),
    (["train", "TASK", "--method", "amw"], "Did you mean 'awm'"),
    (["train", "TASK", "--batch", "10", "--group", "4"], "whole number of groups"),
    (["train", "TASK", "--reference-decay", "2"], "in [0, 1]"),
])  # fmt: skip
def test_what_is_wrong_with_flows_is_said_in_one_sentence(task, capsys, words, said):
    assert main(["flows", *(task if word == "TASK" else word for word in words)]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("verb", [[], ["train"], ["levels"]])
def test_each_verb_of_flows_explains_itself(verb, capsys):
    try:
        code = main(["flows", *verb, "--help"])
    except SystemExit as stop:  # tyro's way
        code = stop.code
    assert not code
    assert "usage" in capsys.readouterr().out
