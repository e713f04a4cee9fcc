"""Resuming: bit for bit, at every step, of every method, after a kill at any moment; nothing is unpickled."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from llm_models import gpt2, judge, trainer, untimed, weights
from llm_spawn import run_together
from safetensors.torch import load_file

from bilevel_rl.errors import InvalidConfig, RunNotFound, StorageFailed
from bilevel_rl.levels import checkpoint

VARIANTS = {
    "shared": {"credit": "gae", "replay_pairs": 2, "save_every": 1},
    "paired lora": {"estimator": "paired", "backend": "lora", "save_every": 1},
    "tilted": {"estimator": "tilted", "objective": "gold", "save_every": 1},
    "nested": {"method": "nested", "save_every": 1},
    "finite difference": {"method": "finite_difference", "save_every": 1},
    "fixed reward": {"method": "fixed_reward", "label_budget": 6, "reward_steps": 3, "save_every": 1},
    "sgd parts": {"optimizer": "sgd", "micro_batch": 3, "epochs": 2, "save_every": 1},
}


def same(one, two):
    assert one.keys() == two.keys()
    for key in one:
        assert torch.equal(one[key], two[key]), key


# a cut in which most kinds of state are kept; `test_recipes` and `test_trainer` resume others, the rest is slow
QUICK = ("paired lora",)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS])
def test_resuming_at_every_step_gives_the_same_bits(name, tmp_path):
    options = VARIANTS[name] | {"steps": 5}
    straight = trainer(**options)
    straight.train()
    states = [{k: v.clone() for k, v in optimizer_state(straight).items()}]
    for k in range(1, 5):
        out = str(tmp_path / str(k))
        trainer(**options | {"steps": k, "out": out}).train()
        again = trainer(**options, out=out, resume=True)
        assert again.step == k
        again.train()
        same(weights(straight), weights(again))
        same(states[0], optimizer_state(again))
        assert untimed(again.history) == untimed(straight.history)
        lines = (Path(out) / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["iteration"] for line in lines] == [1, 2, 3, 4, 5]


def optimizer_state(made):
    found = {}
    for name, optimizer in made.optimizers.items():
        found |= dict(checkpoint.optimizer_tensors(name, optimizer, made.engine.pieces))
    return found


def test_a_judge_that_draws_on_global_randomness_resumes_too(tmp_path):
    def noisy(prompts, completions, shuffle_order=False):
        coins = [random.random() < 0.3, np.random.rand() < 0.3, float(torch.rand(())) < 0.3]  # noqa: NPY002
        return [a ^ any(coins) for a in judge(prompts, completions)]

    def seeded(**options):
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)
        return trainer(judge=lambda p, c, shuffle_order=False: [int(v) for v in noisy(p, c)], **options)

    straight = seeded(steps=4)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    straight.train()
    made = seeded(steps=2, out=str(tmp_path))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)  # noqa: NPY002
    made.train()
    random.seed(99)
    again = trainer(judge=straight.judge, steps=4, out=str(tmp_path), resume=True)
    again.train()
    same(weights(straight), weights(again))


def test_lines_after_the_checkpoint_are_cut(tmp_path):
    made = trainer(steps=4, save_every=2, out=str(tmp_path))
    made.train()
    lines = (tmp_path / "metrics.jsonl").read_text()
    trainer(steps=2, save_every=2, out=str(tmp_path / "two")).train()
    two = tmp_path / "two" / "metrics.jsonl"
    two.write_text(lines + '{"iteration": 5, "torn')
    again = trainer(steps=4, out=str(tmp_path / "two"), resume=True)
    assert [line["iteration"] for line in again.history] == [1, 2]
    again.train()
    assert untimed(again.history) == untimed(made.history)


def test_a_checkpoint_of_another_configuration_or_model_is_refused(tmp_path):
    trainer(steps=1, out=str(tmp_path)).train()
    with pytest.raises(InvalidConfig, match=r"resume: got w=0.5 where the checkpoint has 0.1 \(1 more differ\)"):
        trainer(w=0.5, zeta=0.3, out=str(tmp_path), resume=True)
    with pytest.raises(InvalidConfig, match="checkpoint: got weights that do not fit"):
        trainer(gpt2(n_layer=1), out=str(tmp_path), resume=True)
    with pytest.raises(RunNotFound, match="no file"):
        trainer(out=str(tmp_path / "other"), resume=True)


def test_a_torn_checkpoint_is_an_error_and_nothing_is_unpickled(tmp_path):
    trainer(steps=1, out=str(tmp_path)).train()
    folder = tmp_path / "checkpoint"
    assert {path.suffix for path in folder.iterdir()} == {".json", ".safetensors"}
    weights_file = next(folder.glob("*.safetensors"))
    whole = weights_file.read_bytes()
    weights_file.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunNotFound, match="a checkpoint holds its weights as safetensors"):
        trainer(out=str(tmp_path), resume=True)
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(RunNotFound, match="another format"):
        trainer(out=str(tmp_path), resume=True)


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    made = trainer(steps=1, out=str(tmp_path))
    made.train()
    before = {p.name: p.read_bytes() for p in (tmp_path / "checkpoint").iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.os, "replace", full)
    made.step = 2
    with pytest.raises(StorageFailed, match="No space left"):
        made.save()
    assert {p.name: p.read_bytes() for p in (tmp_path / "checkpoint").iterdir()} == before


@pytest.mark.parametrize(
    ("count", "moments"),
    [
        (1, (3,)), pytest.param(1, (1, 5, 6, 14), marks=pytest.mark.slow),
        pytest.param(2, (1, 3, 14), marks=pytest.mark.slow),
        pytest.param(1, tuple(range(1, 61, 2)), marks=pytest.mark.slow, id="thirty kills"),
    ],
)  # fmt: skip
def test_a_run_killed_at_random_moments_ends_with_the_same_bits(count, moments, tmp_path):
    options = {"save_every": 1, "samples_every": 0, "credit": "gae", "replay_pairs": 2}
    broken = make(tmp_path / "broken")
    ours = options | {"out": str(broken / "run")}
    for kill_at in moments:  # of a run that would go on for ever: no kill comes after the end
        run_together(count, ours | {"steps": 10_000}, broken, resume=kill_at > moments[0], kill_at=kill_at)
        done = json.loads((broken / "run" / "checkpoint" / "state.json").read_text())["step"]
        assert done >= kill_at
    run_together(count, ours | {"steps": done + 2}, broken, resume=True)
    run_together(count, options | {"steps": done + 2}, make(tmp_path / "straight"))
    for rank in range(count):
        one, two = (load_file(folder / f"rank{rank}.safetensors") for folder in (tmp_path / "straight", broken))
        same(one, two)
        one, two = (json.loads((f / f"rank{rank}.json").read_text()) for f in (tmp_path / "straight", broken))
        assert untimed(one) == untimed(two)


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder
