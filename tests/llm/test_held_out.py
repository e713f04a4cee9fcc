"""Held-out evaluation, the best and the last checkpoints, patience, schedules, the KL's controller, no reference."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import torch
from llm_models import config, gold, gpt2, trainer, weights

from bilevel_rl.errors import InvalidConfig, MissingDependency, RunNotFound
from bilevel_rl.levels.checkpoint import kept_steps
from bilevel_rl.llm import export, loggers, setup
from bilevel_rl.llm.config import Config
from bilevel_rl.schedules import Annealed

HELD = [[11], [12, 13]]


def test_an_evaluation_moves_nothing_and_is_written(tmp_path):
    alone = trainer(estimator="tilted", steps=4)
    alone.train()
    seen = trainer(
        estimator="tilted", steps=4, held_out=HELD, eval_every=2, out=str(tmp_path / "run"), keep_last=2, save_every=1,
    )  # fmt: skip
    seen.train()
    assert all(torch.equal(v, weights(seen)[k]) for k, v in weights(alone).items())
    assert seen.labels == alone.labels
    assert seen.tokens == alone.tokens
    lines = [json.loads(line) for line in (tmp_path / "run/held_out.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [2, 4]
    assert {"gold", "kl", "reward", "length"} <= lines[0].keys()
    assert (tmp_path / "run/best/state.json").exists()
    # the last two checkpoints, and no other
    assert kept_steps(tmp_path / "run/checkpoint") == [3, 4]
    assert len(list((tmp_path / "run/checkpoint").glob("weights-*"))) == 2
    policy = gpt2()
    third = export.restore(tmp_path / "run", policy=policy, checkpoint="3")
    assert third.step == 3
    best = max(lines, key=lambda line: line["gold"])["iteration"]
    assert export.restore(tmp_path / "run", policy=gpt2(), checkpoint="best").step == best
    with pytest.raises(RunNotFound, match="no checkpoint of iteration 1; kept are 3, 4"):
        export.restore(tmp_path / "run", policy=gpt2(), checkpoint="1")
    with pytest.raises(InvalidConfig, match="a checkpoint is last, best, or an iteration"):
        export.restore(tmp_path / "run", policy=gpt2(), checkpoint="newest")


def test_patience_ends_a_run_that_gets_no_better(tmp_path):
    made = trainer(
        estimator="tilted", steps=50, held_out=HELD, held_out_gold=lambda completions, **_: [1.0] * len(completions),
        eval_every=1, patience=2, out=str(tmp_path / "run"),
    )  # fmt: skip
    made.train()
    assert made.step == 3  # the first is the best, two more are not better
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "finished"
    assert "no better gold in 2 held-out evaluations: best 1 at iteration 1" in status["message"]


def test_what_evaluation_needs_is_asked_for():
    with pytest.raises(InvalidConfig, match="an evaluation needs prompts that no step sees"):
        trainer(eval_every=2)
    with pytest.raises(InvalidConfig, match="it counts held-out evaluations, and there are none"):
        config(patience=3)


@pytest.mark.parametrize("shape", ["linear", "cosine"])
def test_schedules_rise_and_fall(shape):
    made = config(steps=10, schedule=shape, warmup=2, schedule_end=0.1, alpha=0.4).schedules
    values = [made.alpha(k) for k in range(10)]
    assert values[0] == pytest.approx(0.2)
    assert values[1] == values[2] == pytest.approx(0.4)
    assert all(a >= b for a, b in itertools.pairwise(values[2:]))
    assert made.alpha(10) == pytest.approx(0.04)
    assert made.tau(9) == made.tau(0)  # tau and w are the problem's


def test_one_shape_a_step():
    assert config(schedule="constant").schedules.alpha(2) == 1e-2
    assert not isinstance(config().schedules.alpha, Annealed)
    with pytest.raises(InvalidConfig, match="a step falls in one way"):
        config(schedule="cosine", alpha_power=0.5)


def test_the_controller_brings_the_kl_to_its_target_and_resumes(tmp_path):
    options = {"estimator": "tilted", "target_kl": 0.05, "kl_rate": 0.5, "tau": 0.3}
    made = trainer(steps=4, **options)
    made.train()
    total = 0.0
    for before, line in itertools.pairwise(made.history):
        error = max(-1.0, min(1.0, before["kl"] / 0.05 - 1))
        total += 0.5 * error
        assert line["tau"] == pytest.approx(0.3 * math.exp(total + error))
    half = trainer(steps=2, out=str(tmp_path / "run"), **options)
    half.train()
    rest = trainer(steps=4, out=str(tmp_path / "run"), resume=True, **options)
    rest.train()
    assert all(torch.equal(v, weights(rest)[k]) for k, v in weights(made).items())


def test_the_controller_waits_while_only_x_learns():
    made = trainer(steps=4, method="fixed_reward", reward_steps=2, target_kl=0.05, tau=0.3)
    made.train()
    assert [line["tau"] for line in made.history[:3]] == pytest.approx([0.3] * 3)
    assert made.history[3]["tau"] != pytest.approx(0.3)


def test_plain_learning_without_tau_holds_no_reference():
    def right(completion_ids, **_):
        return gold(completion_ids)

    options = {"method": "plain", "reward": right, "judge": None, "gold": None, "recipe": "grpo"}
    without, with_one = trainer(tau=0.0, **options), trainer(tau=0.1, **options)
    assert without.roles.reference is None
    assert without.roles.frozen() == 0 < with_one.roles.frozen()
    assert without.memory.weights < with_one.memory.weights
    line = without.train()[-1]
    assert "kl" not in line
    assert math.isfinite(line["learned_reward"])
    assert "kl" in with_one.train()[-1]
    # a component that reads the reference gets one
    assert trainer(tau=0.0, **options | {"recipe": "grpo, regular=0.01*sampled_kl"}).roles.reference is not None
    adapters = trainer(tau=0.0, backend="lora", **options)
    assert not adapters.roles.has_reference
    assert "kl" not in adapters.train()[-1]


def test_a_frozen_trunk_is_held_once_and_stays():
    made = trainer(estimator="shared", train=["h.1.mlp", "ln_f"])
    roles = made.roles
    names = set(roles.parameters("policy"))
    assert names == {n for n in names if "h.1.mlp" in n or "ln_f" in n}
    assert names == set(roles.parameters("policy_l"))
    trunk = {n: p for n, p in roles.modules["policy"].named_parameters() if n not in names}
    for other in (roles.modules["policy_l"], roles.reference):
        assert all(p is dict(other.named_parameters())[n] for n, p in trunk.items())
    before = {n: p.clone() for n, p in trunk.items()}
    made.train()
    assert all(torch.equal(before[n], p) for n, p in trunk.items())
    head = "transformer.ln_f.weight"
    assert not torch.equal(roles.parameters("policy")[head], dict(roles.reference.named_parameters())[head])
    with pytest.raises(InvalidConfig, match=r"config\.train: got 'h\.9'; it is in no weight's name"):
        trainer(train=["h.9"])


def test_loggers_by_name_write_offline_or_name_their_extra(tmp_path, monkeypatch):
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    made = trainer(estimator="tilted", steps=2, out=str(tmp_path / "run"), loggers=["tensorboard"])
    made.train()
    (events,) = (tmp_path / "run/runs").rglob("events.out.tfevents.*")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(events.parent))
    read.Reload()
    tags = read.Tags()["scalars"]
    (tag,) = [t for t in tags if t.endswith("/kl")]
    assert [event.step for event in read.Scalars(tag)] == [1, 2]
    with pytest.raises(InvalidConfig, match="Did you mean 'wandb'"):
        Config(loggers=["wandbb"])
    for name in ("wandb", "trackio"):
        monkeypatch.setitem(__import__("sys").modules, name, None)
        with pytest.raises(MissingDependency, match=rf"install .\.\[{name}\]"):
            loggers.named([name])


def test_bfloat16_weights_keep_their_small_steps():
    made = trainer(estimator="tilted", steps=3, weights="bfloat16", dtype="bfloat16", alpha=1e-5)
    before = weights(made)
    made.train()
    state = made.optimizers["policies"].state
    p = made.roles.parameters("policy")["transformer.h.0.attn.c_attn.weight"]
    assert p.dtype is torch.bfloat16
    master = state[p]["master"]
    assert master.dtype is torch.float32
    assert torch.equal(master.to(torch.bfloat16), p)
    # steps far below the precision of the weights are not lost
    assert float((master - before["policy/transformer.h.0.attn.c_attn.weight"].float()).abs().max()) > 1e-5
    with pytest.raises(InvalidConfig, match="Set dtype to bfloat16"):
        config(weights="bfloat16")


def test_adapters_on_a_bfloat16_base_are_32_bit_themselves():
    made = trainer(estimator="tilted", backend="lora", weights="bfloat16", dtype="bfloat16", steps=2)
    assert {p.dtype for p in made.roles.parameters("policy").values()} == {torch.float32}
    assert {p.dtype for p in made.roles.stood_on().values()} == {torch.bfloat16}
    assert math.isfinite(made.train()[-1]["kl"])


def test_fewer_bits_and_attention_are_decided_when_a_model_is_loaded(tmp_path):
    gpt2().save_pretrained(tmp_path / "model")
    model = setup.load_policy(config(policy=str(tmp_path / "model"), attention="eager"), None)
    assert model.config._attn_implementation == "eager"
    with pytest.raises(InvalidConfig, match="it is decided when a model is loaded"):
        trainer(attention="eager")
    with pytest.raises(InvalidConfig, match="it needs backend=lora"):
        config(quantised="4bit")
    with pytest.raises(MissingDependency, match=r"install .\.\[quantised\]"):
        setup.load_policy(config(policy=str(tmp_path / "model"), backend="lora", quantised="4bit"), None)
