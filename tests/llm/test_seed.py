"""Every random number follows `config.seed`: on one process, in a fresh one, and on every rank; what differs is named."""

from __future__ import annotations

import json

import pytest
import torch
from llm_models import gpt2, trainer, weights
from llm_spawn import begin_rank, free_port, start

from bilevel_rl.errors import InvalidConfig

LORA = {"backend": "lora", "estimator": "paired", "credit": "gae", "steps": 1}


def drawn(seed: int, before: int) -> dict[str, torch.Tensor]:
    """The weights of a run that starts after `before` other draws."""
    policy = gpt2()
    torch.manual_seed(before)
    return weights(trainer(policy, **LORA, seed=seed))


def test_adapters_and_heads_follow_the_seed_and_nothing_else():
    one, two, other = drawn(0, 1), drawn(0, 2), drawn(1, 1)
    assert all(torch.equal(one[k], two[k]) for k in one)
    assert any(not torch.equal(one[k], other[k]) for k in one)


def test_making_a_trainer_draws_nothing_from_the_users_generator():
    policy = gpt2()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trainer(policy, **LORA)
    assert torch.equal(torch.rand(3), expected)


DIFFERENT = [
    ({"prompts": [[3], [4, 5], [6, 7, 8], [9], [11]]}, "data of process 1"),
    ({"seed": 1}, "configuration of process 1; initial weights of process 1"),
    ({"steps": 9}, "length of process 1"),
    ({"model": 7}, "frozen weights of process 1"),
    ({"prompts": [[3], [99]]}, r"failure of process 1 (InvalidProblem: prompts[1]"),
]


def together(cases: list[dict], folder, count: int = 2) -> list[list[tuple[dict | None, str | None]]]:
    """What each rank begins with in every case, or the error that ends it."""
    port = free_port()
    children = [start(begin_rank, rank, count, port, cases, str(folder)) for rank in range(count)]
    for child in children:
        child.join(100)
        assert child.exitcode == 0
        child.close()
    ranks = [json.loads((folder / f"begins{rank}.json").read_text()) for rank in range(count)]
    return [[tuple(told) for told in case] for case in zip(*ranks, strict=True)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two fresh processes that agree, and then differ in one thing after the other."""
    cases = [LORA] + [LORA | {"ranks": {1: other}} for other, _ in DIFFERENT]
    return together(cases, tmp_path_factory.mktemp("pairs"))


def test_fresh_processes_begin_alike_alone_and_together(pairs, tmp_path):
    ((alone,),) = together([LORA], tmp_path, count=1)
    first, second = pairs[0]
    assert alone == first == second
    assert alone[0].keys() == {"configuration", "length", "data", "initial weights", "frozen weights"}


@pytest.mark.parametrize("case", range(len(DIFFERENT)), ids=[said for _, said in DIFFERENT])
def test_ranks_that_differ_are_named_on_every_rank_and_all_end(pairs, case):
    errors = [error for _, error in pairs[1 + case]]
    assert DIFFERENT[case][1] in errors[0]
    if "failure" in DIFFERENT[case][1]:
        assert errors[1].startswith("prompts[1]")
    else:
        assert errors[0] == errors[1]


def test_the_run_folder_has_the_digests_and_a_continued_run_compares_them(tmp_path):
    made = trainer(out=str(tmp_path), **LORA)
    made.train()
    assert json.loads((tmp_path / "digests.json").read_text()) == made.digests
    options = LORA | {"steps": 2, "out": str(tmp_path), "resume": True}
    trainer(**options)
    with pytest.raises(InvalidConfig, match="resume: got other frozen weights than the run began with"):
        trainer(gpt2(3), **options)
    with pytest.raises(InvalidConfig, match="resume: got other data than the run began with"):
        trainer(prompts=[[3], [4, 5]], **options)
